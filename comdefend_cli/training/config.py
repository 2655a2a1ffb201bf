"""The settings of `comdefend train`. Without torch, so that the command line reads the defaults cheaply."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from comdefend_cli.errors import UsageError
from comdefend_cli.training.checks import check, check_common, list_values

if TYPE_CHECKING:
    from comdefend_cli.network.architecture import Architecture

OPTIMIZERS = ("muon", "adam")
LOSSES = ("mse", "rmse")
#: Attacks that ComDefend can learn from.
ATTACKS = ("fgsm", "pgd")
#: Families of networks.
FAMILIES = ("paper", "residual")
#: A learning rate each optimizer works with: measured for Muon, the paper's for Adam (3.6).
DEFAULT_LR = {"muon": 0.02, "adam": 1e-3}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run.

    Attributes:
        data: names of the data sets, with "+" between them.
        steps: optimizer steps.
        batch_size: images a step, over all processes; of data sets of smaller images than the largest, as many more.
        seed: of the initial weights, the batches and the noise, from 0 to 2**32 - 1.
        crop: side of the crops of a folder's images, in pixels.
        shrink: the most that a folder's images are made smaller, by area, before they are cropped.
        jitter: share of the colour images whose saturation, hue and exposure change at random.
        small: share of the batches that are cut to images of 1 to 31 pixels a side.
        gray: whether colour images become grey ones.
        arch: "paper" or "residual", the networks' family.
        downscale, width, blocks: of the second one, see :class:`comdefend_cli.network.architecture.ResidualArchitecture`.
        bits: code bits a pixel.
        channels: of the images, 1 or 3.
        loss: "mse", eq. 3's mean square error, or "rmse", the root of each image's, with which an image that is hard to rebuild, such as a
            drawing, pulls no harder than others.
        penalty: lambda of eq. 1, on the mean square of the code.
        noise_std: phi of section 3.5, standard deviation of the noise on the logits.
        rounded_share: of the steps, at the end, in which RecCNN learns from the code as inference rounds it, from 0 as in the paper to 1;
            `noise_std` then sets the gradient alone.
        input_noise: most standard deviation of Gaussian noise on the input, in 8-bit levels;
            each image draws its own up to this. The target stays clean. 0 is the paper's objective.
            It, `input_noise_min` and `feature_weight` are of all the data, or lists with one value for each part of it.
        input_noise_min: least standard deviation likewise. Above 0 no image is taken for a clean one, and attacks are smoothed away too.
        inference_noise: levels of noise before the trained networks unless told otherwise, here and where they are used.
        features: SHA-256, or module:function, of the classifier in whose features the reconstruction is to be near the clean image, or
            "" for none; of several that take turns, with "+" between them; of several data sets NAME=CLASSIFIER for each that has some,
            with "," between them.
        feature_weight: of the mean relative square distance of these features in the loss.
        stability_weight: of the divergence of these classifiers' probabilities in the loss.
        adversarial: "fgsm" or "pgd": images are attacked so, through the networks and a classifier; "" for none.
        adversarial_epsilon: L-infinity distance of those attacks, in 8-bit levels.
        adversarial_steps: of PGD.
        adversarial_share: of each batch that is attacked, above 0 and at most 1.
        classifier: SHA-256, or module:function, of the classifier behind the networks, or ""; of several that take turns, with "+" between.
        label_weight: of its cross-entropy in the loss, and of consistency.
        sigma: standard deviation of the noise, pixels in [0, 1], on `draws` copies of each image, drawn anew each time: for randomized
            smoothing of that classifier. 0 for none.
        draws: of that noise a step.
        consistency: weight of how far the answers to these copies are from each other, beside the cross-entropy.
        optimizer: "muon", or "adam" as in the paper.
        lr: peak learning rate of that optimizer, or None for `DEFAULT_LR`.
        lr_end: the last rate as a share of the peak; in between it falls exponentially.
        warmup: steps in which the rate rises linearly.
        clip: the most that a step's gradient may measure. A small one gives every step the same weight, whatever its data. 0: no limit.
        precision: "float32", or "bfloat16" for mixed precision.
        init: SHA-256 of the weight file that the run started from, or "" for new weights.

    Raises:
        UsageError: a value out of range.
    """

    data: str = "cifar10"
    steps: int = 3200
    batch_size: int = 8
    seed: int = 0
    crop: int = 32
    shrink: int = 1
    jitter: float = 0.0
    small: float = 0.0
    gray: bool = False
    arch: str = "paper"
    downscale: int = 2
    width: int = 64
    blocks: int = 3
    bits: int = 12
    channels: int = 3
    loss: str = "mse"
    penalty: float = 1e-4
    noise_std: float = 20.0
    rounded_share: float = 0.0
    input_noise: float | list[float] = 0.0
    input_noise_min: float | list[float] = 0.0
    inference_noise: float = 0.0
    features: str = ""
    feature_weight: float | list[float] = 0.01
    stability_weight: float = 0.0
    adversarial: str = ""
    adversarial_epsilon: float = 8.0
    adversarial_steps: int = 4
    adversarial_share: float = 0.5
    classifier: str = ""
    label_weight: float = 1.0
    sigma: float = 0.0
    draws: int = 2
    consistency: float = 0.0
    optimizer: str = "muon"
    lr: float | None = None
    lr_end: float = 0.02
    warmup: int = 50
    clip: float = 0.0
    precision: str = "float32"
    init: str = ""

    def __post_init__(self) -> None:
        if self.arch not in FAMILIES:
            raise UsageError(f"unknown family of networks {self.arch!r}: use {' or '.join(FAMILIES)}")
        if self.loss not in LOSSES:
            raise UsageError(f"unknown loss {self.loss!r}: use {' or '.join(LOSSES)}")
        try:
            self.architecture  # noqa: B018
        except ValueError as error:
            raise UsageError(str(error)) from error
        check_common(self)
        check(self, "steps shrink", lambda value: value >= 1, "at least 1")
        check(self, "crop", lambda value: 8 <= value <= 1024, "from 8 to 1024 pixels")
        check(self, "jitter small rounded_share", lambda value: 0 <= value <= 1, "from 0 to 1")
        from_zero = "penalty noise_std warmup clip label_weight stability_weight consistency"
        check(self, from_zero, lambda value: 0 <= value < math.inf, "0 or more")
        check(
            self,
            "input_noise input_noise_min feature_weight",
            lambda value: all(0 <= one < math.inf for one in list_values(value)),
            "0 or more",
        )
        check(self, "inference_noise", lambda value: 0 <= value <= 255, "from 0 to 255 levels")
        ranges = [(self.of_part("input_noise_min", place), self.of_part("input_noise", place)) for place in range(self.listed_parts or 1)]
        check(self, "input_noise_min", lambda _: all(least <= most for least, most in ranges), f"at most input-noise, {self.input_noise}")
        check(self, "lr_end", lambda value: 0 < value <= 1, "above 0 and at most 1")
        check(self, "adversarial", lambda value: value in ("", *ATTACKS), " or ".join(ATTACKS))
        check(self, "adversarial_epsilon adversarial_steps", lambda value: 0 < value < math.inf, "above 0")
        check(self, "adversarial_share", lambda value: 0 < value <= 1, "above 0 and at most 1")
        check(self, "sigma", lambda value: 0 <= value <= 2, "from 0 to 2, pixels in [0, 1]")
        check(self, "draws", lambda value: value >= 1, "at least 1")
        if self.small and self.classifier:
            raise UsageError("small images are no images of a class: leave small out in front of a classifier")
        if self.consistency and self.draws < 2:
            raise UsageError("consistency is that of several draws: make it at least 2")
        if self.classifier and not self.label_weight:
            raise UsageError("label-weight must be above 0: nothing would be learnt from the classifier")
        if self.sigma and self.inference_noise:
            raise UsageError("inference-noise comes before networks that clean images go into, which sigma's never see; leave it out")
        if self.sigma and (self.adversarial or any(list_values(self.input_noise))):
            raise UsageError("sigma is a way to train of its own: leave adversarial and input-noise out")
        if self.adversarial and any(list_values(self.input_noise)):
            raise UsageError("adversarial training has no input noise: the attack is to see what the networks see; leave input-noise out")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"unknown optimizer {self.optimizer!r}: use {' or '.join(OPTIMIZERS)}")

    @property
    def architecture(self) -> Architecture:
        """Of the networks.

        Raises:
            ValueError: a value out of range.
        """
        from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture

        if self.arch == "paper":
            return PaperArchitecture(self.channels, self.bits)
        return ResidualArchitecture(self.channels, self.bits, self.downscale, self.width, self.blocks)

    @property
    def listed_parts(self) -> int:
        """How many parts of the data some setting lists a value for; 0 where all settings are for all parts.

        Raises:
            UsageError: two settings list unlike numbers.
        """
        counts = {len(value) for value in (self.input_noise, self.input_noise_min, self.feature_weight) if isinstance(value, list)}
        if len(counts) > 1:
            raise UsageError(f"settings of each part of the data are for unlike numbers of parts: {', '.join(map(str, sorted(counts)))}")
        return counts.pop() if counts else 0

    def of_part(self, name: str, place: int) -> float:
        """The value of a setting for a part of the data."""
        value = getattr(self, name)
        return float(value[place] if isinstance(value, list) else value)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return DEFAULT_LR[self.optimizer] if self.lr is None else self.lr

    def count_attacked(self, images: int) -> int:
        """How many of so many images of a batch are attacked."""
        return round(images * self.adversarial_share)

    def rounds(self, step: int) -> bool:
        """Whether RecCNN learns from the rounded code in a step, counted from 0."""
        return self.steps - step <= round(self.steps * self.rounded_share)

    def lr_factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the peak.

        It rises linearly over `warmup` steps, then falls exponentially to `lr_end` at the last step (3.6).
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        way = max(0, step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return float(rise * self.lr_end ** min(1.0, way))


def name_networks(architecture: Architecture) -> dict[str, Any]:
    """The settings of a :class:`TrainConfig` by which it makes such networks, but for the channels, which are the images'."""
    sizes = {name: value for name, value in asdict(architecture).items() if name in ("bits", "downscale", "width", "blocks")}
    return {"arch": "residual" if "downscale" in sizes else "paper", **sizes}
