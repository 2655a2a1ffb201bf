"""What training minimizes and how it keeps the rounding trainable (sections 3.4 to 3.6): eq. 3, the noisy code, the logits' scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from comdefend_cli.classifiers.loading import Normalized
from comdefend_cli.classifiers.networks import Blocks
from comdefend_cli.errors import UsageError
from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.layers import SLOPE, Conv3x3, Residual
from comdefend_cli.network.model import ComDefend, binarize

#: Spread of the logits at the start and the most it may grow to, in units of noise_std = 20.
START_RMS, TOP_RMS = 40.0, 100.0
#: Width of the gradient's window at the rounding, in units of the noise's standard deviation.
WINDOW = 2.5
#: Keeps the variance of what passes through a layer with orthogonal weights and an ELU, or a LeakyReLU.
GAIN = {PaperArchitecture: 1.5**0.5, ResidualArchitecture: (2 / (1 + SLOPE**2)) ** 0.5}
#: Share of that with which the second layer of a residual block starts, so that at first the blocks change little.
RESIDUAL_GAIN = 0.2
#: Blocks of a foreign classifier whose outputs are features.
MOST_BLOCKS = 4
#: Added to a mean square error under the root: that of one level.
FLOOR = 1 / 255**2
#: Side of an image below which classifiers do not see it.
LEAST_SIDE = 16


class _TrainedCode(torch.autograd.Function):
    """sigmoid(logits + noise) of section 3.5, or that rounded; backward a normal density at the logit in place of its own slope.

    Under noise of standard deviation s the sigmoid's slope is nearly always zero and seldom large. Its
    mean over the noise is a normal density of width s at the logit, which is the same signal with far less
    variance; `WINDOW` times as wide, it also reaches the logits that have left the noise behind.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, std: float) -> Tensor:
        ctx.save_for_backward(logits)
        # The logistic curve is itself close to a normal one of width 1.702.
        ctx.width = WINDOW * math.hypot(std, 1.702)
        return binarize(logits) if noise is None else torch.sigmoid(logits + noise)

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
    return cast(Tensor, _TrainedCode.apply(logits.float(), noise, std))  # type: ignore[no-untyped-call]


def rounded_code(logits: Tensor, std: float) -> Tensor:
    """The code as inference rounds it, with the gradient of :func:`noisy_code` under noise of standard deviation `std`.

    Under the noise of section 3.5 one bit in ten is another than at inference, and RecCNN learns to live with that. Once ComCNN's code
    carries what it should, RecCNN gains by learning from the very code that it gets ("soft then hard"; Guo et al., ICML 2021).
    """
    return cast(Tensor, _TrainedCode.apply(logits.float(), None, std))  # type: ignore[no-untyped-call]


class FeatureDistance(nn.Module):
    """How far a rebuilt image is from the clean one in a classifier's features (as in Liao et al., CVPR 2018).

    Clean images and none of their labels are needed. The features are the outputs of the classifier's blocks and its logits;
    not those of its stem, which are close to the pixels, which the square error has already.

    Args:
        classifier: of :mod:`comdefend_cli.classifiers`, or a user's own, from (N, C, H, W) in [0, 1] to logits, whose blocks are then the
            members of the `nn.Sequential` or `nn.ModuleList` that has most of them; its weights stay as they are.

    Raises:
        UsageError: a network without such a list.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self._classifier = classifier.eval().requires_grad_(False)
        self._seen: list[Tensor] = []
        if not isinstance(classifier, Normalized) or not isinstance(classifier.body, Blocks):
            for block in _find_blocks(classifier):
                block.register_forward_hook(self._see)

    def forward(self, rebuilt: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """How far a rebuilt image is from the clean one; both (N, C, H, W) in [0, 1].

        Returns:
            The mean over the features of ||f(rebuilt) - f(clean)||^2 / ||f(clean)||^2, and the stability loss (Salman et al., NeurIPS
            2020): how far the class probabilities of the rebuilt image are from those of the clean one, as a Kullback-Leibler divergence
            where they take the cross-entropy of the predicted class; float32 scalars.
        """
        with torch.no_grad():
            wanted = self._features(clean)
        found = self._features(rebuilt)
        distances = [(a - b).square().mean() / b.square().mean().clamp_min(1e-12) for a, b in zip(found, wanted, strict=True)]
        a, b = found[-1].log_softmax(1), wanted[-1].log_softmax(1)
        return torch.stack(distances).mean(), kl_div(a, b, reduction="batchmean", log_target=True)

    def _features(self, x: Tensor) -> list[Tensor]:
        classifier = self._classifier
        if isinstance(classifier, Normalized) and isinstance(classifier.body, Blocks):
            return [found.float() for found in classifier.body.features(classifier.normalize(x))]
        self._seen.clear()
        logits = classifier(x)
        seen, self._seen = self._seen, []
        return [found.float() for found in (*seen, logits)]

    def _see(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self._seen.append(output)


def _find_blocks(classifier: nn.Module) -> list[nn.Module]:
    """`MOST_BLOCKS` of a foreign network's blocks, evenly spread, the last one among them."""
    lists = [module for module in classifier.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    blocks = list(max(lists, key=len, default=nn.ModuleList()))
    if len(blocks) < 2:
        raise UsageError("features need a classifier of train-classifier, or one with an nn.Sequential or nn.ModuleList of blocks")
    count = min(MOST_BLOCKS, len(blocks))
    return [blocks[(place + 1) * len(blocks) // count - 1] for place in range(count)]


class Objective(nn.Module):
    """Eq. 3: mean square error of the reconstruction plus the penalty on the code; on request also what classifiers see of it.

    `rooted` puts the mean of the images' root mean square errors in place of the square error. `features` has the classifiers of each
    part of the data, which take turns; `feature_weights` the weight of their features there, `stability` that of their probabilities.

    All are means over values, not sums over pixels, as in the authors' release.
    """

    def __init__(
        self,
        model: ComDefend,
        penalty: float,
        noise_std: float,
        *,
        rooted: bool = False,
        features: Sequence[Sequence[FeatureDistance]] = (),
        feature_weights: Sequence[float] = (),
        stability: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.penalty = penalty
        self.noise_std = noise_std
        self.rooted = rooted
        self.features = nn.ModuleList([nn.ModuleList(each) for each in features])
        self.feature_weights = feature_weights
        self.stability = stability

    def forward(self, x: Tensor, target: Tensor, noise: Tensor | None, place: int = 0, turn: int = 0) -> tuple[Tensor, Tensor]:
        """The loss (eq. 3) and the mean square of the logits; float32 scalars, the second without gradient.

        Args:
            x: what ComCNN sees, (N, C, H, W) in [0, 1], float32.
            target: what RecCNN should rebuild, the same.
            noise: for the logits, (N, bits, H, W), float32; None for the rounded code of inference.
            place: in `features` of the classifiers that see these images.
            turn: whose of them it is, counted on and on.
        """
        loss, mean_square, rebuilt = self.rebuild(x, target, noise)
        seeing = cast(nn.ModuleList, self.features[place]) if len(self.features) else ()
        if len(seeing) and min(x.shape[2:]) >= LEAST_SIDE:
            distance, change = seeing[turn % len(seeing)](rebuilt, target)
            loss = loss + self.feature_weights[place] * distance + self.stability * change
        return loss, mean_square

    def rebuild(self, x: Tensor, target: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward` without features, and what RecCNN rebuilt, float32 (N, C, H, W)."""
        logits = self.model.com(x)
        code = rounded_code(logits, self.noise_std) if noise is None else noisy_code(logits, noise, self.noise_std)
        rebuilt = self.model.rec(code)
        error = (rebuilt - target).square()
        # The root's slope is bounded by that at one level's error.
        error = error.mean((1, 2, 3)).add(FLOOR).sqrt() if self.rooted else error
        loss = error.mean() + self.penalty * code.square().mean()
        return loss, logits.detach().float().square().mean(), rebuilt


def top_rms(noise_std: float) -> float:
    """The most that the logits' root mean square may grow to under that noise."""
    return TOP_RMS * max(noise_std, 1.0) / 20


def initialize(model: ComDefend, images: Tensor, generator: torch.Generator, start: ComDefend | None = None) -> None:
    """Draw orthogonal weights, or take another model's, and centre and spread the logits on real images where they are new.

    Section 3.6 draws independent ones (He et al., 2015); orthogonal ones trained faster in short runs.

    Args:
        model: on the CPU.
        images: uint8 (N, C, H, W).
        generator: of the weights.
        start: of the same family and sizes; of other bits or channels, the layers that depend on these are drawn.

    Without the last step the logits start far below the noise, and the first hundred steps go into growing them.
    """
    last = model.com.find_convolutions()[-1]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Conv3x3):
                nn.init.orthogonal_(module.weight, gain=GAIN[type(model.architecture)], generator=generator)
                nn.init.zeros_(cast(Tensor, module.bias))
        for module in model.modules():
            if isinstance(module, Residual):
                module.second.weight.mul_(RESIDUAL_GAIN)
        if start is not None:
            own, given = model.state_dict(), start.state_dict()
            model.load_state_dict({**own, **{name: value for name, value in given.items() if value.shape == own[name].shape}})
            if start.architecture.bits == model.architecture.bits:
                return
        x = images.float().div(255)
        last.weight.mul_(START_RMS / model.com(x).std())
        cast(Tensor, last.bias).sub_(model.com(x).mean((0, 2, 3)).repeat_interleave(model.com.scale**2))


def hold_logits(model: ComDefend, rms: float, noise_std: float) -> None:
    """Scale ComCNN's last layer down where the logits outgrow the noise.

    The rounded code is the same at any scale, but at a large one the noise no longer reaches across zero: no
    gradient is left, and training stalls.
    """
    top = top_rms(noise_std)
    if rms > top:
        last = model.com.find_convolutions()[-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(max(top / rms, 0.9))
