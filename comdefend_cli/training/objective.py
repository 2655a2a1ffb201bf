"""What training minimizes and how it keeps the rounding trainable (sections 3.4 to 3.6): eq. 3, the noisy code, the logits' scale."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import Normalized
from comdefend_cli.classifiers.networks import Blocks
from comdefend_cli.errors import UsageError
from comdefend_cli.network.model import ComDefend

#: Spread of the logits at the start and the most it may grow to, in units of noise_std = 20.
START_RMS, TOP_RMS = 40.0, 100.0
#: Width of the gradient's window at the rounding, in units of the noise's standard deviation.
WINDOW = 2.5
#: Keeps the variance of what passes through an ELU layer with orthogonal weights.
GAIN = 1.5**0.5


class _NoisyCode(torch.autograd.Function):
    """sigmoid(logits + noise) of section 3.5; backward a normal density at the logit in place of its own slope.

    Under noise of standard deviation s the sigmoid's slope is nearly always zero and seldom large. Its
    mean over the noise is a normal density of width s at the logit, which is the same signal with far less
    variance; `WINDOW` times as wide, it also reaches the logits that have left the noise behind.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor, std: float) -> Tensor:
        ctx.save_for_backward(logits)
        # The logistic curve is itself close to a normal one of width 1.702.
        ctx.width = WINDOW * math.hypot(std, 1.702)
        return torch.sigmoid(logits + noise)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        density = torch.exp(-0.5 * (logits / ctx.width) ** 2) / (ctx.width * math.sqrt(2 * math.pi))
        return grads[0] * density, None, None


def noisy_code(logits: Tensor, noise: Tensor, std: float) -> Tensor:
    """The code in training: sigmoid(logits + noise) (section 3.5).

    Args:
        logits: (N, bits, H, W), any floating dtype.
        noise: the same shape, float32, already of standard deviation `std`.
        std: of the noise, which sets the width of the gradient's window.

    Returns:
        (N, bits, H, W), float32, in [0, 1]. Its gradient is not the sigmoid's slope but the density, at the logit,
        of a normal distribution of standard deviation `WINDOW` * hypot(std, 1.702).
    """
    return cast(Tensor, _NoisyCode.apply(logits.float(), noise, std))  # type: ignore[no-untyped-call]


class FeatureDistance(nn.Module):
    """How far a rebuilt image is from the clean one in a classifier's features (as in Liao et al., CVPR 2018).

    Clean images and none of their labels are needed. The features are the outputs of the classifier's blocks and its logits;
    not those of its stem, which are close to the pixels, which the square error has already.

    Args:
        classifier: of :mod:`comdefend_cli.classifiers`; its weights stay as they are.

    Raises:
        UsageError: a network that declares no blocks, such as a user's own.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        if not isinstance(classifier, Normalized) or not isinstance(classifier.body, Blocks):
            raise UsageError("features need a classifier of comdefend train-classifier")
        classifier.eval().requires_grad_(False)
        self._normalize, self._blocks = classifier.normalize, classifier.body

    def forward(self, rebuilt: Tensor, clean: Tensor) -> Tensor:
        """The mean over the features of ||f(rebuilt) - f(clean)||^2 / ||f(clean)||^2, a float32 scalar; images (N, C, H, W) in [0, 1]."""
        with torch.no_grad():
            wanted = self._features(clean)
        pairs = zip(self._features(rebuilt), wanted, strict=True)
        distances = [(a - b).square().mean() / b.square().mean().clamp_min(1e-12) for a, b in pairs]
        return torch.stack(distances).mean()

    def _features(self, x: Tensor) -> list[Tensor]:
        return [found.float() for found in self._blocks.features(self._normalize(x))]


class Objective(nn.Module):
    """Eq. 3: mean square error of the reconstruction plus the penalty on the code; on request also a distance of features.

    All are means over values, not sums over pixels, as in the authors' release.
    """

    def __init__(
        self, model: ComDefend, penalty: float, noise_std: float, features: FeatureDistance | None = None, feature_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.penalty = penalty
        self.noise_std = noise_std
        self.features = features
        self.feature_weight = feature_weight

    def forward(self, x: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (eq. 3) and the mean square of the logits; float32 scalars, the second without gradient.

        Args:
            x: what ComCNN sees, (N, C, H, W) in [0, 1], float32.
            target: what RecCNN should rebuild, the same.
            noise: for the logits, (N, bits, H, W), float32.
        """
        logits = self.model.com(x)
        code = noisy_code(logits, noise, self.noise_std)
        rebuilt = self.model.rec(code)
        loss = (rebuilt - target).square().mean() + self.penalty * code.square().mean()
        if self.features is not None:
            loss = loss + self.feature_weight * self.features(rebuilt, target)
        return loss, logits.detach().float().square().mean()


def top_rms(noise_std: float) -> float:
    """The most that the logits' root mean square may grow to under that noise."""
    return TOP_RMS * max(noise_std, 1.0) / 20


def initialize(model: ComDefend, images: Tensor, generator: torch.Generator) -> None:
    """Draw orthogonal weights, and centre and spread the logits on real images.

    Section 3.6 draws independent ones (He et al., 2015); orthogonal ones trained faster in short runs.

    Args:
        model: on the CPU.
        images: uint8 (N, C, H, W).
        generator: of the weights.

    Without the last step the logits start far below the noise, and the first hundred steps go into growing them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight, gain=GAIN, generator=generator)
            nn.init.zeros_(cast(Tensor, module.bias))
    last = cast(nn.Conv2d, model.com[-1])
    with torch.no_grad():
        x = images.float().div(255)
        last.weight.mul_(START_RMS / model.com(x).std())
        cast(Tensor, last.bias).sub_(model.com(x).mean((0, 2, 3)))


def hold_logits(model: ComDefend, rms: float, noise_std: float) -> None:
    """Scale ComCNN's last layer down where the logits outgrow the noise.

    The rounded code is the same at any scale, but at a large one the noise no longer reaches across zero: no
    gradient is left, and training stalls.
    """
    top = top_rms(noise_std)
    if rms > top:
        last = cast(nn.Conv2d, model.com[-1])
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(max(top / rms, 0.9))
