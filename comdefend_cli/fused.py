"""Both networks on an NVIDIA GPU: each convolution with its bias and ELU in one kernel, so that no activation is written twice.

The kernel is in Triton, which comes with PyTorch's CUDA builds for Linux. It takes a convolution as a matrix product: the rows are
pixels, the columns output channels, and what is summed over are the input channels of nine neighbours, which it fetches where they lie.
Pictures are (N, H, W, C) here, C rounded up to a power of two from `LEAST` on with channels of zeros, which the tensor cores want.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from comdefend_cli.model import ComDefend, Conv3x3, ConvELU, binarize, to_picture

#: Fewest channels that a product of the tensor cores takes.
LEAST = 16
#: Most output channels that one program computes.
MOST = 256


@triton.jit  # type: ignore[untyped-decorator]
def _conv3x3(  # type: ignore[no-untyped-def]
    x, weight, bias, y, pixels, height, width,
    inputs: tl.constexpr, outputs: tl.constexpr, elu: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """One block of `rows` pixels by `columns` output channels: `depth` channels of one neighbour at a time, added in float32."""
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    channel = tl.arange(0, depth)
    there = pixel < pixels
    above, left = (pixel // width) % height, pixel % width
    # In 64 bits: there are more activations than 32 bits count.
    neighbours = x + pixel.to(tl.int64)[:, None] * inputs + channel[None, :]
    kernels = weight + column[None, :] * (9 * inputs) + channel[:, None]
    total = tl.zeros((rows, columns), tl.float32)
    for step in tl.range(0, 9 * (inputs // depth), num_stages=stages):
        place, first = step // (inputs // depth), step % (inputs // depth) * depth
        down, right = place // 3 - 1, place % 3 - 1
        inside = there & (above + down >= 0) & (above + down < height) & (left + right >= 0) & (left + right < width)
        a = tl.load(neighbours + ((down * width + right) * inputs + first), mask=inside[:, None], other=0.0)
        b = tl.load(kernels + (place * inputs + first))
        total = tl.dot(a, b, total)
    total += tl.load(bias + column).to(tl.float32)[None, :]
    if elu:
        total = tl.where(total > 0, total, tl.exp(tl.minimum(total, 0)) - 1)
    tl.store(y + pixel.to(tl.int64)[:, None] * outputs + column[None, :], total.to(y.dtype.element_ty), mask=there[:, None])


@torch.no_grad()
def purify(model: ComDefend, x: Tensor) -> Tensor:
    """`model(x)`, without gradient.

    Args:
        model: both networks, bfloat16 or float16.
        x: (N, channels, H, W) in [0, 1], floating point.

    Returns:
        float32 (N, channels, H, W).
    """
    return to_picture(_layers(model.rec, binarize(_layers(model.com, x - 0.5))))


def _layers(network: ConvELU, x: Tensor) -> Tensor:
    """Of x (N, C, H, W) what `network.layers` makes of it, of the weights' dtype."""
    convolutions = [layer for layer in network if isinstance(layer, Conv3x3)]
    y = x.permute(0, 2, 3, 1).to(convolutions[0].weight.dtype)
    y = pad(y, (0, _wide(y.shape[3]) - y.shape[3])).contiguous()
    for layer in convolutions:
        y = convolved(y, layer, elu=layer is not convolutions[-1])
    return y[..., : convolutions[-1].out_channels].permute(0, 3, 1, 2)


def convolved(x: Tensor, layer: Conv3x3, *, elu: bool) -> Tensor:
    """The layer's output, on request through an ELU.

    Args:
        x: (N, H, W, C), contiguous, of the weights' dtype; C the layer's inputs, rounded up with channels of zeros.
        layer: the convolution.
        elu: whether an ELU follows.

    Returns:
        (N, H, W, D), D the layer's outputs, rounded up likewise.
    """
    inputs, outputs = x.shape[3], _wide(layer.out_channels)
    assert layer.bias is not None
    more = outputs - layer.out_channels
    weight = pad(layer.weight.permute(0, 2, 3, 1), (0, inputs - layer.in_channels, 0, 0, 0, 0, 0, more)).contiguous()
    bias = pad(layer.bias, (0, more))
    y = x.new_empty((*x.shape[:3], outputs))
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    rows, columns, depth, stages, warps = _blocks(inputs, outputs)
    grid = (triton.cdiv(pixels, rows), outputs // columns)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _conv3x3[grid](
            x, weight, bias, y, pixels, x.shape[1], x.shape[2],
            inputs=inputs, outputs=outputs, elu=elu, rows=rows, columns=columns, depth=depth, stages=stages, num_warps=warps,
        )  # fmt: skip
    return y


def _wide(channels: int) -> int:
    """Channels as they lie in memory."""
    return max(LEAST, 1 << (channels - 1).bit_length())


def _blocks(inputs: int, outputs: int) -> tuple[int, ...]:
    """Pixels, output channels and input channels of a block, stages of its pipeline and warps."""
    columns = min(outputs, MOST)
    return (128 if columns > 128 else 256), columns, min(inputs, 64), 3, (8 if columns > 64 else 4)
