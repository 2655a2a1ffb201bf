"""The networks of ComDefend (Jia et al., CVPR 2019, sections 3.2 to 3.5) on one page.

    x (N, C, H, W) in [0, 1]
      |  - 0.5
      v
    ComCNN   nine 3x3 convolutions, ELU between them         (3.2, table 1)
      |  logits (N, bits, H, W)
      v
    binarize   training: sigmoid(logits + noise)             (3.5)
      |        inference: logits > 0
      v  code (N, bits, H, W) of zeros and ones
    RecCNN   nine 3x3 convolutions, ELU between them         (3.3, table 2)
      |  sigmoid
      v
    y (N, C, H, W) in [0, 1]

Every convolution has stride 1, zero padding 1 and a bias, so any height and width goes
through, and one output pixel depends on the 37x37 input pixels around it (`ComDefend.halo`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.functional import elu_ as torch_elu_

CHANNELS = (1, 3)
BITS = (4, 8, 10, 12, 14, 16)
#: Output channels of ComCNN's first eight layers (table 1; its "356" is 256, as layer 6 says).
HIDDEN = (16, 32, 64, 128, 256, 128, 64, 32)

_ONE_DNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

Gradient = Literal["none", "straight-through", "soft"]
GRADIENTS: tuple[str, ...] = get_args(Gradient)


@dataclass(frozen=True)
class Architecture:
    """What a weight file must say to rebuild its networks.

    Attributes:
        channels: colour channels of the image, 1 or 3.
        bits: code bits a pixel, one of `BITS`.
        hidden: output channels of ComCNN's first eight layers; RecCNN mirrors them.

    Raises:
        ValueError: a value outside those ranges.
    """

    channels: int = 3
    bits: int = 12
    hidden: tuple[int, ...] = HIDDEN

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise ValueError(f"channels must be one of {CHANNELS}, not {self.channels}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")
        if len(self.hidden) != len(HIDDEN) or not all(1 <= width <= 1024 for width in self.hidden):
            raise ValueError(f"hidden must be {len(HIDDEN)} widths from 1 to 1024, not {self.hidden}")


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, stride 1, zero padding 1, whose float32 result on a CPU does not depend on the input's shape or layout.

    PyTorch picks another algorithm for small inputs than for large ones; they differ in the last digits, which can flip a
    rounded level, so a tile would not equal the whole image. oneDNN's alone, channels last, adds in one order everywhere; where
    the channels come first it has other kernels, which add in another order (on CPUs without AVX-512 for every number of channels).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        return self._convolve(input, (1, 1))

    def rows(self, input: Tensor) -> Tensor:
        """As `forward` for an image's rows without padding above and below: (N, inputs, H, W) to (N, outputs, H - 2, W)."""
        return self._convolve(input, (0, 1))

    def _convolve(self, input: Tensor, padding: tuple[int, int]) -> Tensor:
        if not _is_exact(input):
            return conv2d(input, self.weight, self.bias, padding=padding)
        # The weight's layout decides over the input's; of one input channel, only the strides tell, which `contiguous` leaves as they are.
        weight = self.weight if self.weight.stride(1) == 1 else self.weight.clone(memory_format=torch.channels_last)
        if input.dtype == torch.float32 and _ONE_DNN and not torch.is_autocast_enabled("cpu"):
            return torch.mkldnn_convolution(input, weight, self.bias, padding, (1, 1), (1, 1), 1)
        return conv2d(input, weight, self.bias, padding=padding)


def _is_exact(x: Tensor) -> bool:
    """Whether tiles of x must equal the whole bit for bit: on a CPU, but not where the networks are recorded for other software."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def elu_(x: Tensor) -> Tensor:
    """exp(x) - 1 where x is negative, in place; in float32 on a CPU without gradient, wherever a value lies in memory.

    PyTorch's own computes the last few values of a tensor, and of a thread's part of it, by another routine than the others.
    """
    if x.requires_grad or x.dtype != torch.float32 or not _is_exact(x):
        return torch_elu_(x)
    return torch.maximum(x, x.clamp(max=0).expm1_(), out=x)


class ELU(nn.Module):
    """:func:`elu_` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, overwritten."""
        return elu_(x)


class Network(nn.Sequential):
    """Nine 3x3 convolutions with an ELU after each but the last: the layers of both networks.

    This is their only description: what computes them in another way, see :data:`Compute`, walks over the same layers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [Conv3x3(inputs, outputs), ELU()]
        super().__init__(*layers[:-1])

    def run_layers(self, x: Tensor) -> Tensor:
        """All layers in turn, (N, first width, H, W) to (N, last width, H, W)."""
        return cast(Tensor, nn.Sequential.forward(self, x))  # type: ignore[no-untyped-call]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def radius(self) -> int:
        """How far the input reaches into the output, in pixels each way: one a 3x3 layer."""
        return sum(isinstance(layer, Conv3x3) for layer in self)


#: What computes the layers of a network, of an input in the weights' dtype: the layers themselves, or another backend in their place.
Compute = Callable[[Network, Tensor], Tensor]


class ComCNN(Network):
    """Compression (3.2): an image in [0, 1], (N, C, H, W), to logits (N, bits, H, W)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__((architecture.channels, *architecture.hidden, architecture.bits))

    def forward(self, x: Tensor, compute: Compute = Network.run_layers) -> Tensor:
        """Logits (N, bits, H, W), in the weights' dtype, of x (N, C, H, W)."""
        # Centred, as the authors' released checkpoint expects it; the paper does not say.
        return compute(self, (x - 0.5).to(self.dtype))


class RecCNN(Network):
    """Reconstruction (3.3): a code in [0, 1], (N, bits, H, W), to an image in [0, 1]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__((architecture.bits, *reversed(architecture.hidden), architecture.channels))

    def forward(self, code: Tensor, compute: Compute = Network.run_layers) -> Tensor:
        """The image (N, C, H, W), float32, of a code (N, bits, H, W)."""
        # Noise in float32 makes a code in float32 of bfloat16 logits.
        return to_image(compute(self, code.to(self.dtype)))


def to_image(x: Tensor) -> Tensor:
    """The sigmoid of RecCNN's last layer, float32; on a CPU in double precision between, for the reason of :func:`elu_`."""
    return torch.sigmoid(x.double() if _is_exact(x) else x.float()).float()


class _Binarize(torch.autograd.Function):
    """Step function forward; backward the identity, or the slope of the sigmoid."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, soft: bool) -> Tensor:
        ctx.soft = soft
        if soft:
            ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        if ctx.soft:
            slope = torch.sigmoid(ctx.saved_tensors[0])
            grad = grad * slope * (1 - slope)
        return grad, None


def binarize(logits: Tensor, gradient: Gradient = "none") -> Tensor:
    """Round logits to the code: 1 where logit > 0, the same as sigmoid > 0.5 (3.5).

    Args:
        logits: any shape, floating point.
        gradient: what `backward` sees in place of the step's zero: "none" detaches,
            "straight-through" passes the gradient unchanged (Bengio et al., 2013),
            "soft" multiplies it by the sigmoid's slope. The forward value is the same for all.

    Returns:
        Zeros and ones of the logits' shape and dtype.
    """
    if gradient == "none":
        return (logits > 0).to(logits.dtype)
    return cast(Tensor, _Binarize.apply(logits, gradient == "soft"))  # type: ignore[no-untyped-call]


class ComDefend(nn.Module):
    """Both networks; `forward` is deterministic inference, differentiable on request.

    Args:
        architecture: channels, bits and widths; the paper's by default (1,566,735 parameters).
        input_noise: standard deviation of the noise, in 8-bit levels, that :class:`comdefend_cli.Purifier` puts on images before
            these networks unless it is told otherwise; `forward` puts none.
    """

    def __init__(self, architecture: Architecture | None = None, input_noise: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        self.input_noise = input_noise
        self.com = ComCNN(self.architecture)
        self.rec = RecCNN(self.architecture)

    @property
    def halo(self) -> int:
        """How far the input reaches into the output, in pixels each way: 18, as a 3x3 layer reaches one."""
        return self.com.radius + self.rec.radius

    def forward(self, x: Tensor, noise: Tensor | None = None, gradient: Gradient = "none", compute: Compute = Network.run_layers) -> Tensor:
        """Purify.

        Args:
            x: (N, channels, H, W) in [0, 1], any floating dtype.
            noise: added to the logits (N, bits, H, W) before they are rounded, or None.
            gradient: see :func:`binarize`.
            compute: what computes the layers of both networks.

        Returns:
            (N, channels, H, W) in [0, 1], float32.
        """
        return cast(Tensor, self.rec(self.encode(x, noise, gradient, compute), compute))

    def encode(self, x: Tensor, noise: Tensor | None = None, gradient: Gradient = "none", compute: Compute = Network.run_layers) -> Tensor:
        """The code of x: zeros and ones, (N, bits, H, W). Takes what :meth:`forward` takes."""
        logits = self.com(x, compute)
        return binarize(logits if noise is None else logits + noise, gradient)
