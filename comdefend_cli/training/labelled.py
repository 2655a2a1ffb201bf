"""ComDefend trained in front of classifiers that stay as they are: what is common to all that trains so.

Outside of the paper, whose networks learn from clean images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import try_classifier
from comdefend_cli.data.mixture import Variation, has_labels
from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import UsageError
from comdefend_cli.network.model import ComDefend, Gradient
from comdefend_cli.training.augmentation import augment
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.purifier import PurifierTrainer


class LabelledTrainer(PurifierTrainer):
    """Trains ComDefend so that the classifiers behind it are right on what it rebuilds.

    Several classifiers take turns, a step each. Where images have no labels, a classifier's own answers to the clean ones stand for them
    (as in the stability loss of Salman et al., NeurIPS 2020).

    Args:
        config: the run's settings, with `classifier`.
        dataset: images, with labels or without.
        device: where to train.
        classifiers: each from (N, C, H, W) in [0, 1] to logits; their weights stay as they are.
        names: what errors call them; without, as `config` does.
        start: as of :class:`.PurifierTrainer`.

    Attributes:
        systems: the networks, each time before another of the classifiers.

    Raises:
        UsageError: a classifier that does not fit the images.
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
        super().__init__(config, dataset, device, start=start)
        # A mirrored digit is none.
        self._mirror = "mnist" not in dataset.name.split("+")
        self.systems = [Exposed(self.model, classifier.to(device).eval().requires_grad_(False)) for classifier in classifiers]
        parts = {id(part): part for part in self._images.parts}.values()
        classes = max(int(part.labels.max()) + 1 if has_labels(part) else 2 for part in parts)
        samples = [Variation(gray=config.gray).apply(part.batch(2, self.generator(1)), self.generator(1)) for part in parts]
        for system, name in zip(self.systems, names or config.classifier.split("+"), strict=True):
            for sample in samples:
                _refuse_unfit(system.classify, sample.to(device).float().div(255), classes, name)

    def choose_system(self) -> Exposed:
        """The one whose turn the step after `step_done` is."""
        return self.systems[self.step_done % len(self.systems)]

    def draw_labelled(self, copies: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the next step's batch the share of this process.

        Returns:
            Clean images, mirrored and shifted, float32 (N, C, H, W) in [0, 1]; their labels, (N,); uniform numbers from -1 to 1 of the
            images' shape; noise for the logits of so many copies of all images, (copies N, bits, H, W).
        """
        config, generator = self.config, self.generator(self.step_done + 2)
        pixels, labels = self._images.draw_labelled(config.batch_size, generator, mirror=self._mirror)
        # Already mirrored.
        clean = augment(pixels.float().div_(255), generator, mirror=False)
        start = torch.rand(clean.shape, generator=generator) * 2 - 1
        noise = torch.randn((copies, len(clean), config.bits, *clean.shape[2:]), generator=generator).mul_(config.noise_std)
        own = self.take_share(len(clean))
        clean, start, noise = (part.contiguous().to(self.device) for part in (clean[own], start[own], noise[:, own].flatten(0, 1)))
        if labels is not None:
            return clean, labels[own].to(self.device), start, noise
        with torch.no_grad(), self.autocast():
            return clean, self.choose_system().classify(clean).argmax(1), start, noise

    def take_share(self, count: int) -> slice:
        """Which of so many images of a batch are this process's."""
        size = count // self.processes
        return slice(size * self.rank, size * (self.rank + 1))


class Exposed(nn.Module):
    """Purifier and classifier as an attacker differentiates them. Both are held, not owned: they keep their own modes."""

    def __init__(self, model: ComDefend, classifier: nn.Module) -> None:
        super().__init__()
        self.parts = (model, classifier)
        self.gradient: Gradient = "soft"

    def forward(self, x: Tensor) -> Tensor:
        """The classifier's logits of what the networks make of images (N, C, H, W) in [0, 1]."""
        return self.classify(self.parts[0](x, gradient=self.gradient))

    def classify(self, rebuilt: Tensor) -> Tensor:
        """The classifier's logits of rebuilt images."""
        return self.parts[1](rebuilt)  # type: ignore[no-any-return]


def count_right(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of logits (N, classes) whose largest is the label's, float32."""
    return (logits.detach().argmax(1) == labels).float().mean()


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
            raise UsageError(f"{name}: has no gradient, which training follows; give one that is differentiable")
