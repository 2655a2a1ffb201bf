"""The layers that the networks of both families are made of, computed so that tiles of an image equal the whole bit for bit."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, leaky_relu_
from torch.nn.functional import elu_ as torch_elu_

#: Of LeakyReLU where x is negative.
SLOPE = 0.2

_ONE_DNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


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
        if not is_exact(input):
            return conv2d(input, self.weight, self.bias, padding=padding)
        # The weight's layout decides over the input's; of one input channel, only the strides tell, which `contiguous` leaves as they are.
        weight = self.weight if self.weight.stride(1) == 1 else self.weight.clone(memory_format=torch.channels_last)
        if input.dtype == torch.float32 and _ONE_DNN and not torch.is_autocast_enabled("cpu"):
            return torch.mkldnn_convolution(input, weight, self.bias, padding, (1, 1), (1, 1), 1)
        return conv2d(input, weight, self.bias, padding=padding)


def is_exact(x: Tensor) -> bool:
    """Whether tiles of x must equal the whole bit for bit: on a CPU, but not where the networks are recorded for other software."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def elu_(x: Tensor) -> Tensor:
    """exp(x) - 1 where x is negative, in place; in float32 on a CPU without gradient, wherever a value lies in memory.

    PyTorch's own computes the last few values of a tensor, and of a thread's part of it, by another routine than the others.
    """
    if x.requires_grad or x.dtype != torch.float32 or not is_exact(x):
        return torch_elu_(x)
    return torch.maximum(x, x.clamp(max=0).expm1_(), out=x)


class ELU(nn.Module):
    """:func:`elu_` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, overwritten."""
        return elu_(x)


class LeakyReLU(nn.Module):
    """max(x, `SLOPE` * x) as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, overwritten."""
        return leaky_relu_(x, SLOPE)


class Residual(nn.Module):
    """x + second(act(first(act(x)))), act being LeakyReLU, both layers 3x3 convolutions (He et al., 2016, arXiv:1603.05027).

    Args:
        width: channels of input, output and in between.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv3x3(width, width)
        self.second = Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same; x is left as it is."""
        return cast(Tensor, self.second(leaky_relu_(self.first(leaky_relu(x, SLOPE)), SLOPE))).add_(x)
