"""Training reference classifiers: plain, on purified images (section 4.4.2), adversarially, with smoothed labels."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import Classifier, ClassifierHeader, Normalized, build
from comdefend_cli.classifiers.networks import Whitening
from comdefend_cli.classifiers.signed_gradient import signed_gradient
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.training.augmentation import augment
from comdefend_cli.training.checkpoint import gather, scatter
from comdefend_cli.training.config import ClassifierConfig
from comdefend_cli.training.optim import Muon

Adversarial = Literal["", "fgsm", "bim"]
#: Nesterov SGD's peak rate for what Muon does not take: norms, biases, the last layer.
SGD_BESIDE_MUON = 0.1


@dataclass(frozen=True)
class ClassifierReport:
    """What one step showed.

    Attributes:
        step: steps done.
        loss: cross-entropy of the batch.
        accuracy: share of correct test images in percent after a whole epoch and at the end, else None.
        images_per_second: since the run or its resumption began.
    """

    step: int
    loss: float
    accuracy: float | None
    images_per_second: float


class ClassifierTrainer:
    """A training run, one step at a time; all that it carries is in `state()` and `step_done`.

    Every step's images and augmentation come from (seed, step), so a resumed run sees what an uninterrupted one sees.

    Args:
        config: the run's settings.
        dataset: images with labels; already purified where the classifier is to learn from purified ones.
        classes: their names.
        device: where to train.
        start: a classifier to go on from, with its normalization, or None to draw new weights.

    Attributes:
        step_done: steps done.
        steps: in all.
        model: the classifier, float32.

    Raises:
        UsageError: images without labels; a start of another architecture or for other images.
    """

    def __init__(
        self, config: ClassifierConfig, dataset: Dataset, classes: tuple[str, ...], device: torch.device, start: Classifier | None = None
    ) -> None:
        train = dataset.train
        if not isinstance(train, ImageArray) or not len(train.labels):
            raise UsageError(f"{config.data}: its images have no labels, which a classifier needs")
        self.config, self.dataset, self.device, self._train = config, dataset, device, train
        self.steps = config.steps(len(train))
        self.step_done = 0
        values = train.pixels[:: max(1, len(train) // 5000)].float().div(255)
        mean, std = (tuple(round(v, 4) for v in part.tolist()) for part in (values.mean((0, 2, 3)), values.std((0, 2, 3))))
        self.header = ClassifierHeader(config.arch, train.channels, classes, mean, std)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build(self.header)
        for whitening in (module for module in self.model.modules() if isinstance(module, Whitening)):
            whitening.fit(self.model.normalize(values))
        if start is not None:
            self._continue(start)
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizers = _optimizers(self.model, config)

    def _continue(self, start: Classifier) -> None:
        """Take the weights and the normalization of `start`."""
        weights = start.model.state_dict()
        own = self.model.state_dict()
        same = weights.keys() == own.keys() and all(weights[name].shape == own[name].shape for name in own)
        if not (isinstance(start.model, Normalized) and same):
            raise UsageError(f"{start.name}: not a {self.config.arch} for {self.config.data}; start from a classifier of that kind")
        mean, std = (tuple(round(v, 4) for v in part.tolist()) for part in (start.model.normalize.mean, start.model.normalize.std))
        self.header = replace(self.header, mean=mean, std=std)
        self.model = build(self.header)
        self.model.load_state_dict(weights)

    def step(self) -> float:
        """One optimizer step; returns the loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        x, y = self._batch()
        self.model.train()
        if self.config.adversarial:
            x = self._half_adversarial(x, y)
        with self._autocast():
            loss = cross_entropy(self.model(x), y, label_smoothing=self.config.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"collapsed at step {self.step_done + 1}: the loss is not finite; train again with a lower --lr")
        factor = self.config.lr_factor(self.step_done, self.steps)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, _ in self._optimizers:
            optimizer.step()
        self.step_done += 1
        return value

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The step's images, shifted and mirrored, float32 in [0, 1], and labels; every image once an epoch."""
        size, count = self.config.batch_size, len(self._train)
        place = torch.arange(self.step_done * size, (self.step_done + 1) * size)
        epochs = range(int(place[0]) // count, int(place[-1]) // count + 1)
        index = torch.cat([self._order(epoch)[place[place // count == epoch] % count] for epoch in epochs])
        pixels = self._train.pixels[index].to(self.device).float().div(255)
        x = augment(pixels, self._generator(self.step_done, 1), mirror=self.dataset.name != "mnist", cutout=self.config.cutout)
        return x.contiguous(memory_format=torch.channels_last), self._train.labels[index].to(self.device)

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(len(self._train), generator=self._generator(epoch, 2))
        return self._permutation

    def _generator(self, number: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.config.seed * 2_654_435_761 + 3 * number + stream) % 2**32)

    def _half_adversarial(self, x: Tensor, y: Tensor) -> Tensor:
        """The batch with its first half replaced by adversarial images (Kurakin et al., 2017, section 3)."""
        half, config = len(x) // 2, self.config
        drawn = torch.rand((half, 1, 1, 1), generator=self._generator(self.step_done, 0)).to(x)
        epsilon = drawn * (config.adversarial_epsilon / 255)
        steps = config.adversarial_steps if config.adversarial == "bim" else 1
        self.model.eval().requires_grad_(False)
        attacked = signed_gradient(self.model, x[:half], y[:half], epsilon, steps, self._autocast)
        self.model.train().requires_grad_(True)
        return torch.cat([attacked, x[half:]]).contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> Any:
        return nullcontext() if self.config.precision == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    @torch.no_grad()
    def measure(self, count: int = 10_000) -> float:
        """Accuracy on the first test images, in percent."""
        self.model.eval()
        test = self.dataset.test
        right = 0
        for pixels, labels in zip(torch.split(test.pixels[:count], 500), torch.split(test.labels[:count], 500), strict=True):
            with self._autocast():
                right += int((self.model(pixels.to(self.device).float().div(255)).argmax(1).cpu() == labels).sum())
        return 100 * right / min(count, len(test))

    def run(self) -> Iterator[ClassifierReport]:
        """Train to the end, yielding a report a step."""
        began, first = time.perf_counter(), self.step_done
        an_epoch = max(1, round(len(self._train) / self.config.batch_size))
        while self.step_done < self.steps:
            loss = self.step()
            due = self.step_done % an_epoch == 0 or self.step_done == self.steps
            rate = (self.step_done - first) * self.config.batch_size / (time.perf_counter() - began)
            yield ClassifierReport(self.step_done, loss, self.measure() if due else None, rate)

    def training_record(self) -> dict[str, Any]:
        """How the classifier came to be, for its file's header."""
        return {**asdict(self.config), "steps": self.steps, "train_images": len(self._train), "torch_version": torch.__version__}

    def state(self) -> dict[str, Tensor]:
        """Weights, running statistics and the optimizers' moments, by name."""
        return gather(self.model, [optimizer for optimizer, _ in self._optimizers])

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from what `state()` returned after `step` steps.

        Raises:
            KeyError, RuntimeError: something is missing, or of another shape.
        """
        scatter(state, self.model, [optimizer for optimizer, _ in self._optimizers], moments=step > 0)
        self.step_done = step


def _optimizers(model: nn.Module, config: ClassifierConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the convolutions after the first, Nesterov SGD for the rest, each with its peak rate."""
    kernels = [cast(nn.Parameter, module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)][1:]
    chosen = {id(kernel) for kernel in kernels}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    beside = SGD_BESIDE_MUON * config.lr / ClassifierConfig.lr
    sgd = torch.optim.SGD(rest, beside, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return [(Muon(kernels, config.lr, weight_decay=config.weight_decay), config.lr), (sgd, beside)]
