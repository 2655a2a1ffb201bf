"""Training reference classifiers: plain, on purified images (section 4.4.2), adversarially, with smoothed labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import Classifier, ClassifierHeader, Normalized, build
from comdefend_cli.classifiers.networks import ARCHITECTURES, Whitening
from comdefend_cli.data.datasets import Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.training.augmentation import augment
from comdefend_cli.training.checkpoint import gather, scatter
from comdefend_cli.training.optim import Muon

Adversarial = Literal["", "fgsm", "bim"]
#: Nesterov SGD's peak rate for what Muon does not take: norms, biases, the last layer.
SGD_BESIDE_MUON = 0.1
WARMUP = 0.15


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that decides the outcome of a run.

    Attributes:
        data: name of the data set.
        arch: one of `comdefend_cli.classifiers.networks.ARCHITECTURES`.
        epochs: passes over the training images.
        batch_size: images a step.
        seed: of weights, batches and augmentation.
        lr: peak learning rate of Muon on the kernels.
        weight_decay: of the kernels, see `Muon`. Norms follow them, so it does not make the network's function smaller: it keeps the
            kernels from growing, and their steps from shrinking beside them.
        purify: SHA-256 of the ComDefend weights that purify the training images (4.4.2), or "".
        input_noise: beside each training image stands a second one with Gaussian noise, of a standard deviation drawn up to this, in
            8-bit levels, before it is purified; 0 for none.
        cutout: side of a square that is hidden in each image, in pixels; 0 for none.
        adversarial: "fgsm" or "bim": half of each batch is adversarial (Kurakin et al., 2017); "" for none.
        adversarial_epsilon: most L-infinity distance of those, in 8-bit levels; each image draws its own up to it.
        adversarial_steps: of BIM.
        label_smoothing: the share of a label's weight that goes to all classes alike.
        precision: "float32", or "bfloat16" for mixed precision.
        init: SHA-256 of the classifier file that the run started from, or "" for new weights.

    Raises:
        UsageError: a value out of range.
    """

    data: str = "cifar10"
    arch: str = "small"
    epochs: float = 8.0
    batch_size: int = 256
    seed: int = 0
    lr: float = 0.02
    weight_decay: float = 0.1
    purify: str = ""
    input_noise: float = 0.0
    cutout: int = 0
    adversarial: str = ""
    adversarial_epsilon: float = 8.0
    adversarial_steps: int = 4
    label_smoothing: float = 0.0
    precision: str = "float32"
    init: str = ""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"unknown architecture {self.arch!r}: use one of {', '.join(ARCHITECTURES)}")
        if self.adversarial not in ("", "fgsm", "bim"):
            raise UsageError(f"unknown attack {self.adversarial!r} to train on: use fgsm or bim")
        for name in ("epochs", "batch_size", "lr", "adversarial_epsilon", "adversarial_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.weight_decay * self.lr < 1:
            raise UsageError(f"weight-decay must be from 0 to below 1 / lr, not {self.weight_decay}")
        if not 0 <= self.input_noise <= 255:
            raise UsageError(f"input-noise must be from 0 to 255 levels, not {self.input_noise}")
        if not 0 <= self.cutout <= 1024:
            raise UsageError(f"cutout must be from 0 to 1024 pixels, not {self.cutout}")
        if self.batch_size < 2:
            raise UsageError("batch-size must be at least 2, since the norms need more than one image")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label-smoothing must be from 0 to below 1, not {self.label_smoothing}")
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(f"training knows float32 and bfloat16, not {self.precision!r}")


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
        self.steps = math.ceil(config.epochs * len(train) / config.batch_size)
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
        factor = self._lr_factor()
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, _ in self._optimizers:
            optimizer.step()
        self.step_done += 1
        return value

    def _lr_factor(self) -> float:
        """Linearly up over the first part, then linearly down to zero."""
        way = (self.step_done + 1) / self.steps
        return min(way / WARMUP, (1 - way) / (1 - WARMUP) + 1 / self.steps)

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


def signed_gradient(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: Tensor, steps: int, autocast: Callable[[], Any] = nullcontext
) -> Tensor:
    """FGSM (Goodfellow et al., 2015) for one step, BIM (Kurakin et al., 2017) for more, to train on.

    Args:
        model: from (N, C, H, W) in [0, 1] to logits.
        x: the images.
        y: their labels, (N,).
        epsilon: most L-infinity distance, (N, 1, 1, 1), in units of the images.
        steps: each of epsilon / steps, or 1.25 times that where there are several.
        autocast: makes the context that the model computes in.

    Returns:
        The shape of x, in [0, 1], without gradient.
    """
    size = epsilon * ((1.25 if steps > 1 else 1.0) / steps)
    attacked = x.detach()
    for _ in range(steps):
        attacked.requires_grad_(True)
        with torch.enable_grad(), autocast():
            loss = cross_entropy(model(attacked), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + size * gradient.sign()
        attacked = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return attacked.detach()
