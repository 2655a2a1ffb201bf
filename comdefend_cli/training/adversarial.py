"""ComDefend trained against attacks, in front of classifiers that stay as they are.

Outside of the paper, whose networks learn from clean images alone. Attacks are made through both networks and a classifier, so that the
attacker whom they learn from is one who knows of them (adversarial training; Madry et al., ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import try_classifier
from comdefend_cli.classifiers.signed_gradient import input_gradient
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import UsageError
from comdefend_cli.network.model import ComDefend, Gradient
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.distributed import average
from comdefend_cli.training.purifier import PurifierTrainer

#: How far the random start of FGSM reaches, in units of epsilon (de Jorge et al., NeurIPS 2022), and all steps of PGD together.
FGSM_START, PGD_REACH = 2.0, 2.5
#: Of the rounding, see :func:`comdefend_cli.network.model.binarize`, in turns: networks that met one alone stood it and fell to the other
#: (docs/results/adaptive.md).
GRADIENTS: tuple[Gradient, ...] = ("soft", "straight-through")


class AdversarialTrainer(PurifierTrainer):
    """Trains ComDefend so that the classifiers behind it are right on clean and attacked images.

    The loss is that of :class:`.Objective`, plus a classifier's cross-entropy of what is rebuilt; a share of each batch is attacked.
    Several classifiers take turns, a step each.

    Args:
        config: the run's settings, with `adversarial`.
        dataset: images with labels, of one data set.
        device: where to train.
        classifiers: each from (N, C, H, W) in [0, 1] to logits; their weights stay as they are.
        names: what errors call them; without, as `config` does.
        start: as of :class:`.PurifierTrainer`.

    Raises:
        UsageError: images without labels, a batch of which nothing would be attacked, or a classifier that does not fit them.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        classifiers: Sequence[nn.Module],
        *,
        names: Sequence[str] | None = None,
        start: ComDefend | None = None,
    ) -> None:
        train = dataset.train
        if not isinstance(train, ImageArray) or not len(train.labels):
            raise UsageError(f"{config.data}: adversarial training needs one data set with labels, such as cifar10")
        super().__init__(config, dataset, device, start=start)
        self._attacked = round(config.batch_size // self.processes * config.adversarial_share)
        if not self._attacked:
            part = f"a share of {config.adversarial_share} of what each process takes"
            raise UsageError(f"a batch of {config.batch_size} is too small: {part} is less than one image to attack")
        self._labelled = train
        self._systems = [_Exposed(self.model, classifier.to(device).eval().requires_grad_(False)) for classifier in classifiers]
        classes = int(train.labels.max()) + 1
        for system, name in zip(self._systems, names or config.classifier.split("+"), strict=True):
            _refuse_unfit(system.classify, self.test_images[:2].to(device).float().div(255), classes, name)

    def losses(self) -> dict[str, Tensor]:
        """The loss on this process's part of the batch, some of it attacked, and the root mean square of the logits of all of it."""
        clean, labels, start, noise = (part.to(self.device) for part in self._draw_labelled(self.step_done))
        turn, place = divmod(self.step_done, len(self._systems))
        count, system = self._attacked, self._systems[place]
        system.gradient = GRADIENTS[turn % len(GRADIENTS)]
        attacked = self._attack(system, clean[:count], labels[:count], start[:count])
        x = torch.cat([attacked, clean[count:]]).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss, mean_square, rebuilt = self._objective.rebuild(x, clean, self.choose_noise(noise))
            loss = loss + self.config.label_weight * cross_entropy(system.classify(rebuilt).float(), labels)
        average([mean_square])
        return {"loss": loss, "logit_rms": mean_square.sqrt()}

    def _attack(self, system: _Exposed, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """FGSM or PGD from a random start, through what `GRADIENTS` has in place of the rounding's slope.

        FGSM starts from more noise than epsilon and is not brought back, else training on a single step ends in networks that only
        a single step cannot break (de Jorge et al., NeurIPS 2022).
        """
        epsilon = self.config.adversarial_epsilon / 255
        if self.config.adversarial == "fgsm":
            moved = x + FGSM_START * epsilon * start
            return (moved + epsilon * input_gradient(system, moved, y, self.autocast).sign()).clamp(0, 1)
        steps = self.config.adversarial_steps
        moved = (x + epsilon * start).clamp(0, 1)
        for _ in range(steps):
            moved = moved + PGD_REACH / steps * epsilon * input_gradient(system, moved, y, self.autocast).sign()
            moved = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
        return moved

    def _draw_labelled(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a batch the share of this process: clean images, labels, random starts from -1 to 1, noise for the logits."""
        config, generator = self.config, self.generator(step + 2)
        pixels, places = self._labelled.draw(config.batch_size, generator)
        start = torch.rand(pixels.shape, generator=generator) * 2 - 1
        noise = torch.randn((len(pixels), config.bits, *pixels.shape[2:]), generator=generator).mul_(config.noise_std)
        size = len(pixels) // self.processes
        share = slice(size * self.rank, size * (self.rank + 1))
        parts: list[Any] = [pixels.float().div_(255), self._labelled.labels[places], start, noise]
        return tuple(part[share].contiguous() for part in parts)


class _Exposed(nn.Module):
    """Purifier and classifier as an attacker differentiates them. Both are held, not owned: they keep their own modes."""

    def __init__(self, model: ComDefend, classifier: nn.Module) -> None:
        super().__init__()
        self.parts = (model, classifier)
        self.gradient: Gradient = "soft"

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.parts[0](x, gradient=self.gradient))

    def classify(self, rebuilt: Tensor) -> Tensor:
        """The classifier's logits of rebuilt images."""
        return self.parts[1](rebuilt)  # type: ignore[no-any-return]


def _refuse_unfit(classify: Callable[[Tensor], Tensor], shown: Tensor, classes: int, name: str) -> None:
    """Raise :class:`UsageError` where there would be nothing to learn from a classifier: it fails, or gives no logits, or no gradient."""
    logits = try_classifier(classify, shown, name)
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[1] < classes:
        raise UsageError(f"{name}: must return logits of {classes} classes or more, not {shape}")
    if not logits.isfinite().all():
        raise UsageError(f"{name}: its logits are not finite; give another")
    with torch.enable_grad():
        logits = classify(shown.requires_grad_())
        if not logits.requires_grad or torch.autograd.grad(logits.sum(), shown, allow_unused=True)[0] is None:
            raise UsageError(f"{name}: has no gradient, which the attacks follow; give one that is differentiable")
