"""Training reference classifiers: plain, on purified images (section 4.4.2), adversarially, with smoothed labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import Classifier, ClassifierHeader, Normalized, build
from comdefend_cli.classifiers.networks import Whitening
from comdefend_cli.classifiers.signed_gradient import signed_gradient
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import UsageError
from comdefend_cli.training.augmentation import augment
from comdefend_cli.training.classifier_config import ClassifierConfig
from comdefend_cli.training.loop import Trainer, fix_seed
from comdefend_cli.training.optim import pair_with_muon

#: Nesterov SGD's peak rate for what Muon does not take: norms, biases, the last layer.
SGD_BESIDE_MUON = 0.1


class ClassifierTrainer(Trainer):
    """Trains a classifier on shifted and mirrored images, each once an epoch.

    Args:
        config: the run's settings.
        dataset: images with labels; already purified where the classifier is to learn from purified ones.
        classes: their names.
        device: where to train.
        start: a classifier to go on from, with its normalization, or None to draw new weights.

    Attributes:
        header: what the classifier's file is to say of it, but for its training.

    Raises:
        UsageError: images without labels; a start of another architecture or for other images.
    """

    command: ClassVar[str] = "comdefend train-classifier"
    unit: ClassVar[str] = "% of test images right"
    measure_name: ClassVar[str] = "accuracy"
    config: ClassifierConfig
    model: Normalized

    def __init__(
        self, config: ClassifierConfig, dataset: Dataset, classes: tuple[str, ...], device: torch.device, start: Classifier | None = None
    ) -> None:
        train = dataset.train
        if not isinstance(train, ImageArray) or not len(train.labels):
            raise UsageError(f"{config.data}: its images have no labels, which a classifier needs")
        self._train, self._epoch = train, -1
        values = train.pixels[:: max(1, len(train) // 5000)].float().div(255)
        self.header = ClassifierHeader(
            config.arch, train.channels, classes, _rounded(values.mean((0, 2, 3))), _rounded(values.std((0, 2, 3)))
        )
        with fix_seed(config.seed):
            model = build(self.header)
        for whitening in (module for module in model.modules() if isinstance(module, Whitening)):
            whitening.fit(model.normalize(values))
        if start is not None:
            self.header, model = _copy(start, model, self.header, config.data)
        steps = config.steps(len(train))
        schedule = partial(config.lr_factor, steps=steps)
        super().__init__(config, dataset, device, model, _optimizers(model, config), steps=steps, schedule=schedule)
        self.measure_every = max(1, round(len(train) / config.batch_size))

    def losses(self) -> dict[str, Tensor]:
        """Cross-entropy of the step's batch."""
        x, y = self._batch()
        self.model.train()
        if self.config.adversarial:
            x = self._half_adversarial(x, y)
        with self.autocast():
            return {"loss": cross_entropy(self.model(x), y, label_smoothing=self.config.label_smoothing)}

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The step's images, shifted and mirrored, float32 in [0, 1], and labels; every image once an epoch."""
        size, count = self.config.batch_size, len(self._train)
        place = torch.arange(self.step_done * size, (self.step_done + 1) * size)
        epochs = range(int(place[0]) // count, int(place[-1]) // count + 1)
        index = torch.cat([self._order(epoch)[place[place // count == epoch] % count] for epoch in epochs])
        pixels = self._train.pixels[index].to(self.device).float().div(255)
        x = augment(pixels, self._stream(self.step_done, 1), mirror=self.dataset.name != "mnist", cutout=self.config.cutout)
        return x.contiguous(memory_format=torch.channels_last), self._train.labels[index].to(self.device)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            self._epoch, self._permutation = epoch, torch.randperm(len(self._train), generator=self._stream(epoch, 2))
        return self._permutation

    def _stream(self, number: int, stream: int) -> torch.Generator:
        """Of three streams the generator of a step, or of an epoch."""
        return self.generator(3 * number + stream)

    def _half_adversarial(self, x: Tensor, y: Tensor) -> Tensor:
        """The batch with its first half replaced by adversarial images (Kurakin et al., 2017, section 3)."""
        half, config = len(x) // 2, self.config
        drawn = torch.rand((half, 1, 1, 1), generator=self._stream(self.step_done, 0)).to(x)
        epsilon = drawn * (config.adversarial_epsilon / 255)
        steps = config.adversarial_steps if config.adversarial == "bim" else 1
        self.model.eval().requires_grad_(False)
        attacked = signed_gradient(self.model, x[:half], y[:half], epsilon, steps, self.autocast)
        self.model.train().requires_grad_(True)
        return torch.cat([attacked, x[half:]]).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def measure(self, count: int = 10_000) -> float:
        """Accuracy on the first test images, in percent."""
        self.model.eval()
        test = self.dataset.test
        right = 0
        for pixels, labels in zip(torch.split(test.pixels[:count], 500), torch.split(test.labels[:count], 500), strict=True):
            with self.autocast():
                right += int((self.model(pixels.to(self.device).float().div(255)).argmax(1).cpu() == labels).sum())
        return 100 * right / min(count, len(test))

    def validate(self) -> float:
        """Accuracy in percent."""
        return self.measure()

    def record(self) -> dict[str, Any]:
        """As every trainer's, with steps and accuracy."""
        return {**super().record(), "steps": self.steps, "accuracy": round(self.measure(), 2), "test_images": len(self.dataset.test)}


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())


def _copy(start: Classifier, like: Normalized, header: ClassifierHeader, data: str) -> tuple[ClassifierHeader, Normalized]:
    """A header and a network with the weights and the normalization of `start`, if it is like that one."""
    weights, own = start.model.state_dict(), like.state_dict()
    same = weights.keys() == own.keys() and all(weights[name].shape == own[name].shape for name in own)
    if not (isinstance(start.model, Normalized) and same):
        raise UsageError(f"{start.name}: not a {header.arch} for {data}; start from a classifier of that kind")
    normalize = start.model.normalize
    header = replace(header, mean=_rounded(normalize.mean), std=_rounded(normalize.std))
    model = build(header)
    model.load_state_dict(weights)
    return header, model


def _optimizers(model: nn.Module, config: ClassifierConfig) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions after the first, Nesterov SGD for the rest, at their peak rates."""
    kernels = [cast(nn.Parameter, module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)][1:]
    beside = SGD_BESIDE_MUON * config.lr / ClassifierConfig.lr
    sgd = partial(torch.optim.SGD, lr=beside, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return pair_with_muon(sgd, model, kernels, config.lr, config.weight_decay)
