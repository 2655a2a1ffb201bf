"""Both networks on an NVIDIA GPU: each convolution with its bias, what follows it and what is added to it in one kernel.

The kernel is in Triton, which comes with PyTorch's CUDA builds for Linux. It takes a convolution as a matrix product: the rows are
pixels, the columns output channels, and what is summed over are the input channels of nine neighbours, which it fetches where they lie.
Images are (N, H, W, C) here, C rounded up to a power of two from `LEAST` on with channels of zeros, which the tensor cores want.

In "float8" those of the paper's layers that take most of the time multiply numbers of 8 bits (e4m3: 4 of exponent, 3 of mantissa), all
others bfloat16.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import leaky_relu, leaky_relu_, pad

from comdefend_cli.network.layers import ELU, SLOPE, Conv3x3, LeakyReLU, Residual
from comdefend_cli.network.model import ComDefend, Network
from comdefend_cli.runtime.device import dtype_name

#: Fewest channels that a product of the tensor cores takes.
LEAST = 16
FLOAT8 = torch.float8_e4m3fn
#: Input times output channels from which a layer is computed in 8 bits where these are asked for.
LARGE = 64 * 128
#: The largest number of e4m3, and by what activations are divided to stay below it: of photographs they reach 800.
MOST, SHRINK = 448.0, 8.0


@dataclass(frozen=True)
class Blocks:
    """How a layer is cut: `rows` pixels by `columns` output channels a program, `depth` input channels at a time.

    Attributes:
        stages: of the pipeline that fetches what comes next while the tensor cores multiply.
        warps: of a program.
    """

    rows: int
    columns: int
    depth: int
    stages: int = 3
    warps: int = 8

    def count_bytes(self, itemsize: int) -> int:
        """Shared memory that a program takes for what it multiplies, numbers of so many bytes."""
        return (self.rows + self.columns) * self.depth * self.stages * itemsize


#: The fastest of those that were measured on an H100, by bytes of a number, input and output channels.
BLOCKS = {
    (2, 16, 16): Blocks(256, 16, 16, 4, 4),
    (2, 16, 32): Blocks(128, 32, 16, 3, 4),
    (2, 32, 64): Blocks(256, 64, 32, 4, 8),
    (2, 64, 128): Blocks(128, 128, 64, 3, 8),
    (2, 128, 256): Blocks(128, 256, 64, 3, 8),
    (2, 256, 128): Blocks(256, 128, 64, 4, 8),
    (2, 128, 64): Blocks(128, 64, 64, 3, 4),
    (2, 64, 32): Blocks(256, 32, 64, 3, 8),
    (2, 32, 16): Blocks(128, 16, 32, 3, 4),
    (1, 64, 128): Blocks(128, 128, 64, 3, 4),
    (1, 128, 256): Blocks(128, 256, 128, 3, 8),
    (1, 256, 128): Blocks(128, 128, 128, 3, 8),
    (1, 128, 64): Blocks(128, 64, 128, 3, 4),
}


# One compilation for images of all sizes: for those that are multiples of 16 another would be no faster.
@triton.jit(do_not_specialize=["pixels", "height", "width"])  # type: ignore[untyped-decorator]
def _conv3x3(  # type: ignore[no-untyped-def]
    x, weight, factor, bias, skip, y, pixels, height, width,
    inputs: tl.constexpr, outputs: tl.constexpr, elu: tl.constexpr, leaky: tl.constexpr, added: tl.constexpr,
    slope: tl.constexpr, shrink: tl.constexpr, most: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """One block of `rows` pixels by `columns` output channels; `depth` channels of one neighbour at a time, added in float32."""
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
        offset = (down * width + right) * inputs + first
        a = tl.load(neighbours + offset, mask=inside[:, None], other=0.0)
        b = tl.load(kernels + (place * inputs + first))
        total = tl.dot(a, b, total)
    total = total * tl.load(factor + column)[None, :] + tl.load(bias + column)[None, :]
    if elu:
        total = tl.where(total > 0, total, tl.exp(tl.minimum(total, 0)) - 1)
    if leaky:
        total = tl.where(total > 0, total, total * slope)
    place_of = pixel.to(tl.int64)[:, None] * outputs + column[None, :]
    if added:
        total += tl.load(skip + place_of, mask=there[:, None], other=0.0).to(tl.float32)
    if y.dtype.element_ty == tl.float8e4nv:
        total = tl.minimum(total * (1 / shrink), most)
    tl.store(y + place_of, total.to(y.dtype.element_ty), mask=there[:, None])


class Layer:
    """A convolution, ready for the kernel.

    Args:
        convolution: its weights are read now.
        float8: whether it takes activations in 8 bits.

    Attributes:
        activation: what follows it, "elu", "leaky" or "".
        channels: that are more than filling, of its output.
    """

    def __init__(self, convolution: Conv3x3, *, float8: bool = False) -> None:
        self.activation, self.channels = "", convolution.out_channels
        self.inputs, self.outputs = _widen(convolution.in_channels), _widen(self.channels)
        more = self.outputs - self.channels
        weight, bias = convolution.weight.detach().permute(0, 2, 3, 1), convolution.bias
        assert bias is not None
        weight = pad(weight, (0, self.inputs - convolution.in_channels, 0, 0, 0, 0, 0, more)).contiguous()
        self.bias = pad(bias.detach().float(), (0, more))
        self.factor = torch.ones_like(self.bias)
        self.dtype = FLOAT8 if float8 else weight.dtype
        if float8:
            # Each output channel has a scale of its own, so that its largest weight is the largest number.
            scale = weight.float().abs().amax((1, 2, 3)).clamp_min(1e-12) / MOST
            weight, self.factor = weight / scale[:, None, None, None], scale * SHRINK
        self.weight = weight.to(self.dtype)

    def __call__(self, x: Tensor, dtype: torch.dtype, skip: Tensor | None = None) -> Tensor:
        """The layer's output.

        Args:
            x: (N, H, W, inputs), contiguous, of this layer's dtype; in 8 bits divided by `SHRINK`.
            dtype: of the result.
            skip: added to it, (N, H, W, outputs), contiguous.

        Returns:
            (N, H, W, outputs), in 8 bits likewise.
        """
        y = torch.empty((*x.shape[:3], self.outputs), dtype=dtype, device=x.device)
        pixels = x.shape[0] * x.shape[1] * x.shape[2]
        cut = self.blocks
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            _conv3x3[triton.cdiv(pixels, cut.rows), self.outputs // cut.columns](
                x, self.weight, self.factor, self.bias, y if skip is None else skip, y, pixels, x.shape[1], x.shape[2],
                inputs=self.inputs, outputs=self.outputs, elu=self.activation == "elu", leaky=self.activation == "leaky",
                added=skip is not None, slope=SLOPE, shrink=SHRINK, most=MOST,
                rows=cut.rows, columns=cut.columns, depth=cut.depth, stages=cut.stages, num_warps=cut.warps,
            )  # fmt: skip
        return y

    @property
    def blocks(self) -> Blocks:
        """Those that were measured; of other widths, or where the GPU has less shared memory than an H100, some that fit any."""
        measured = BLOCKS.get((self.dtype.itemsize, self.inputs, self.outputs))
        if measured and measured.count_bytes(self.dtype.itemsize) <= find_shared_memory(self.weight.device):
            return measured
        return Blocks(64, min(self.outputs, 128), min(self.inputs, 32), 2, 4)


class Block:
    """A residual block: two layers, the first one's input added to what the second one makes.

    Args:
        block: its weights are read now.
    """

    def __init__(self, block: Residual) -> None:
        self.first, self.second = Layer(block.first), Layer(block.second)
        self.first.activation = "leaky"
        self.dtype = self.first.dtype

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """X (N, H, W, width), contiguous, to the same."""
        return self.second(self.first(leaky_relu(x, SLOPE), dtype), dtype, skip=x)


class Activation:
    """A LeakyReLU by itself, where no single layer comes before it.

    Args:
        dtype: of its input.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Any shape, overwritten."""
        return leaky_relu_(x, SLOPE)


class TritonNetworks:
    """Both networks, without gradient.

    Args:
        model: on an NVIDIA GPU, in bfloat16 or float16; it is read now, so that what happens to it later does not matter.
        float8: whether its large layers are computed in 8 bits.

    Attributes:
        precision: "bfloat16", "float16" or "float8".
    """

    name = "triton"

    def __init__(self, model: ComDefend, *, float8: bool = False) -> None:
        self.precision = "float8" if float8 else dtype_name(model.com.dtype)
        self._model = copy.deepcopy(model).to("meta")  # For its forward pass; its weights take no memory.
        self._steps: dict[Network, list[Layer | Block | Activation]] = {
            self._model.com: _fuse(model.com, float8),
            self._model.rec: _fuse(model.rec, float8),
        }

    def choose_tile(self, pixels: int) -> int:
        """Side of a tile, whatever the image's size."""
        return 2048

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise."""
        return cast(Tensor, self._model(x, compute=self._compute))

    def _compute(self, network: Network, x: Tensor) -> Tensor:
        """Of x (N, C, H, W) what all layers make of it, (N, another C, H, W)."""
        steps, channels = self._steps[network], network.find_convolutions()[-1].out_channels
        y = x.permute(0, 2, 3, 1)
        y = pad(y, (0, _widen(y.shape[3]) - y.shape[3])).contiguous()
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            y = step(y, dtype=after.dtype if after else x.dtype)
        return y[..., :channels].permute(0, 3, 1, 2)


def _fuse(network: Network, float8: bool) -> list[Layer | Block | Activation]:
    """A network's layers for the kernel, each convolution with what follows it."""
    float8 = float8 and network.scale == 1
    fused: list[Layer | Block | Activation] = []
    for layer in network:
        match layer, fused[-1] if fused else None:
            case Conv3x3(), _:
                fused.append(Layer(layer, float8=float8 and layer.in_channels * layer.out_channels >= LARGE))
            case ELU(), Layer() as last:
                last.activation = "elu"
            case LeakyReLU(), Layer() as last:
                last.activation = "leaky"
            case LeakyReLU(), _:
                fused.append(Activation(network.dtype))
            case Residual(), _:
                fused.append(Block(layer))
            case _:
                raise TypeError(f"the kernel does not know {layer}")
    return fused


@cache
def find_shared_memory(device: torch.device) -> int:
    """Bytes of it that one program may take there."""
    if device.type != "cuda":  # Triton's interpreter.
        return 2**31
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])


def _widen(channels: int) -> int:
    """Channels as they lie in memory."""
    return max(LEAST, 1 << (channels - 1).bit_length())
