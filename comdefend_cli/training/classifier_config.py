"""The settings of training classifiers and baselines, a dataclass a command. Without torch, as those of `comdefend train`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from comdefend_cli.errors import UsageError
from comdefend_cli.training.checks import check, check_common

#: The share of the steps over which the rate of classifiers and of baselines rises.
CLASSIFIER_WARMUP, BASELINE_WARMUP = 0.15, 0.05


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
        sigma: standard deviation of the noise, pixels in [0, 1], on `draws` copies of each image, drawn anew each time, before they are
            purified: for randomized smoothing. 0 for none.
        draws: of that noise a step.
        consistency: weight in the loss of how far the answers to these copies are from each other.
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
    sigma: float = 0.0
    draws: int = 2
    consistency: float = 0.0
    cutout: int = 0
    adversarial: str = ""
    adversarial_epsilon: float = 8.0
    adversarial_steps: int = 4
    label_smoothing: float = 0.0
    precision: str = "float32"
    init: str = ""

    def __post_init__(self) -> None:
        from comdefend_cli.classifiers.networks import ARCHITECTURES

        if self.arch not in ARCHITECTURES:
            raise UsageError(f"unknown architecture {self.arch!r}: use one of {', '.join(ARCHITECTURES)}")
        if self.adversarial not in ("", "fgsm", "bim"):
            raise UsageError(f"unknown attack {self.adversarial!r} to train on: use fgsm or bim")
        check_common(self)
        check(self, "batch_size", lambda value: value >= 2, "at least 2, since the norms need more than one image")
        check(self, "epochs adversarial_epsilon adversarial_steps", lambda value: 0 < value < math.inf, "above 0")
        check(self, "weight_decay", lambda value: 0 <= value * self.lr < 1, "from 0 to below 1 / lr")
        check(self, "input_noise", lambda value: 0 <= value <= 255, "from 0 to 255 levels")
        check(self, "sigma", lambda value: 0 <= value <= 2, "from 0 to 2, pixels in [0, 1]")
        check(self, "draws", lambda value: value >= 1, "at least 1")
        check(self, "consistency", lambda value: 0 <= value < math.inf, "0 or more")
        check(self, "cutout", lambda value: 0 <= value <= 1024, "from 0 to 1024 pixels")
        if self.consistency and self.draws < 2:
            raise UsageError("consistency is that of several draws: make it at least 2")
        if self.sigma and (self.adversarial or self.input_noise):
            raise UsageError("sigma is a way to train of its own: leave adversarial and input-noise out")
        check(self, "label_smoothing", lambda value: 0 <= value < 1, "from 0 to below 1")

    def steps(self, images: int) -> int:
        """Optimizer steps over so many training images."""
        return math.ceil(self.epochs * images / self.batch_size)

    def lr_factor(self, step: int, steps: int) -> float:
        """The learning rate of a step of `steps`, counted from 0, as a share of the peak."""
        return _up_and_down(step, steps, CLASSIFIER_WARMUP)


@dataclass(frozen=True)
class BaselineConfig:
    """What decides the outcome of a run, beside the network's architecture.

    Attributes:
        data: name of the data set.
        steps: optimizer steps.
        batch_size: images a step.
        seed: of the initial weights, the batches and the attacks.
        lr: peak learning rate of Muon on the inner kernels; Adam takes the rest at `ADAM_SHARE` of it.
        precision: "float32", or "bfloat16" for mixed precision.

    Raises:
        UsageError: a value out of range.
    """

    data: str = "cifar10"
    steps: int = 1000
    batch_size: int = 16
    seed: int = 0
    lr: float = 0.02
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_common(self)
        check(self, "steps", lambda value: value >= 1, "at least 1")

    def lr_factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the peak."""
        return _up_and_down(step, self.steps, BASELINE_WARMUP)


def _up_and_down(step: int, steps: int, rise: float) -> float:
    """Linearly up to 1 over that share of the steps, then linearly down to nearly nothing at the last one."""
    way = (step + 1) / steps
    return min(way / rise, (1 - way) / (1 - rise) + 1 / steps, 1.0)
