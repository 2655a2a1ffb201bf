"""A small PixelCNN: the distribution of an image, pixel by pixel in reading order (van den Oord et al., 2016; Salimans et al., ICLR 2017).

    levels (N, C, H, W), 0 to 255 -> [-1, 1], with a plane of ones that tells inside from outside
      |  7x7 convolution that sees only earlier pixels
      v
    depth gated residual blocks: h + a * sigmoid(b), (a, b) = 3x3 convolution of ELU(h) that sees earlier pixels and its own
      |  ELU, 1x1 convolution
      v
    parameters (N, H, W, P) of a mixture of discretised logistics over the pixel's channels (:mod:`.mixture`)

What a pixel's parameters depend on lies before it in reading order. So an image is decoded pixel by pixel with each layer
computed once at each place (`Decoder`): no more work than one pass of the whole network, for any number of images at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, linear, pad

from comdefend_cli.data.sources import Dataset
from comdefend_cli.evaluate.defences.mixture import Mixture, parameters_a_component, to_unit
from comdefend_cli.evaluate.defences.network_files import StoredNetwork, load_network
from comdefend_cli.training.baseline import BaselineTrainer
from comdefend_cli.training.classifier_config import BaselineConfig
from comdefend_cli.training.loop import fix_seed

KIND = "pixelcnn"
#: Reach of the first convolution, and of those in the blocks, in pixels.
FIRST_RADIUS, RADIUS = 3, 1


@dataclass(frozen=True)
class PixelCNNArchitecture:
    """What a weight file must say to rebuild its network.

    Attributes:
        channels: of the images, 1 or 3.
        width: features a pixel.
        depth: residual blocks.
        mixtures: components of the mixture.

    Raises:
        ValueError: a value out of range, or no whole number.
    """

    channels: int = 3
    width: int = 48
    depth: int = 6
    mixtures: int = 5

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, 512), ("depth", 1, 64), ("mixtures", 1, 64)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value}")
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")


class CausalConv(nn.Conv2d):
    """A convolution that sees the pixels before its own in reading order, and with `centre` its own.

    The kernel is (radius + 1) x (2 radius + 1): nothing below is ever seen; in its last row a mask hides what comes after.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, radius: int, *, centre: bool) -> None:
        super().__init__(inputs, outputs, (radius + 1, 2 * radius + 1))
        self.radius, self.centre = radius, centre
        mask = torch.ones(radius + 1, 2 * radius + 1)
        mask[-1, radius + centre :] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of x (N, inputs, H, W): (N, outputs, H, W)."""
        r = self.radius
        return conv2d(pad(x, (r, r, r, 0)), self.weight * self.mask, self.bias)

    def matrix(self) -> Tensor:
        """The taps that see something, as (taps * inputs, outputs), row by row."""
        taps: Tensor = self.weight.permute(2, 3, 1, 0)[self.mask.bool()]
        return taps.flatten(0, 1)


def _gate(h: Tensor, gates: Tensor) -> Tensor:
    """The end of a block: h (N, width, ...) and the convolution's (N, 2 width, ...) to the next h."""
    value, gate = gates.chunk(2, dim=1)
    return h + value * torch.sigmoid(gate)


class PixelCNN(nn.Module):
    """The network; `forward` gives the parameters of every pixel's distribution given the pixels before it."""

    def __init__(self, architecture: PixelCNNArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = shape = architecture or PixelCNNArchitecture()
        self.enter = CausalConv(shape.channels + 1, shape.width, FIRST_RADIUS, centre=False)
        self.blocks = nn.ModuleList(CausalConv(shape.width, 2 * shape.width, RADIUS, centre=True) for _ in range(shape.depth))
        self.leave = nn.Conv2d(shape.width, shape.mixtures * parameters_a_component(shape.channels), 1)
        self._spread_components()

    @torch.no_grad()
    def _spread_components(self) -> None:
        """Begin with components side by side over all levels."""
        shape = self.architecture
        bias = torch.zeros(parameters_a_component(shape.channels), shape.mixtures)
        bias[1 : 1 + shape.channels] = torch.linspace(-0.8, 0.8, shape.mixtures)
        bias[1 + shape.channels : 1 + 2 * shape.channels] = -1.5
        self.leave.weight.mul_(0.1)
        cast(Tensor, self.leave.bias).copy_(bias.flatten())

    def forward(self, levels: Tensor) -> Tensor:
        """Parameters (N, H, W, P) of levels (N, C, H, W), whole numbers from 0 to 255 as floating point."""
        h = self.enter(pad_ones(to_unit(levels)))
        for block in self.blocks:
            h = _gate(h, block(elu(h)))
        parameters: Tensor = self.leave(elu(h))
        return parameters.permute(0, 2, 3, 1)

    def log_probability(self, levels: Tensor) -> Tensor:
        """Log probability of each pixel given those before it: (N, H, W), in nats, of levels as for `forward`."""
        parameters = self(levels)
        # Half precision would not tell narrow bins apart.
        wide = parameters.float() if parameters.dtype == torch.bfloat16 else parameters
        return Mixture(wide, self.architecture.channels).log_probability(levels.permute(0, 2, 3, 1))


def pad_ones(x: Tensor) -> Tensor:
    """Of x (N, C, ...): the same with one more channel, of ones."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def bits_per_dimension(log_probability: Tensor, channels: int) -> Tensor:
    """Mean bits a channel of a pixel, from log probabilities of pixels in nats."""
    return -log_probability.mean() / (channels * math.log(2))


class Decoder:
    """The network one pixel at a time: parameters at a pixel, after the pixels before it were told.

    Args:
        model: in evaluation mode.
        count: images that are decoded together.
        width: theirs, in pixels.
    """

    def __init__(self, model: PixelCNN, count: int, width: int) -> None:
        self._enter = _Rows(model.enter, count, width)
        self._blocks = [_Rows(cast(CausalConv, block), count, width) for block in model.blocks]
        self._leave = model.leave.weight.flatten(1), model.leave.bias

    def next_row(self) -> None:
        """Go on to a new row of pixels; also before the first."""
        for layer in (self._enter, *self._blocks):
            layer.next_row()

    def at(self, column: int) -> Tensor:
        """Parameters (N, P) at a column of the present row; once for each column, from left to right."""
        h = self._enter.at(column)
        for block in self._blocks:
            block.put(column, elu(h))
            h = _gate(h, block.at(column))
        return linear(elu(h), *self._leave)

    def put(self, column: int, levels: Tensor) -> None:
        """Tell the pixels (N, C) at a column."""
        self._enter.put(column, pad_ones(to_unit(levels)))


class _Rows:
    """A causal convolution at one place at a time, with the few rows of its input that it still sees: (N, W + 2 radius, inputs) each."""

    def __init__(self, conv: CausalConv, count: int, width: int) -> None:
        self._matrix, self._bias = conv.matrix(), cast(Tensor, conv.bias)
        self._radius, self._centre = conv.radius, conv.centre
        self._empty = self._matrix.new_zeros(count, width + 2 * conv.radius, conv.in_channels)
        self._rows = deque([self._empty] * (conv.radius + 1), maxlen=conv.radius + 1)

    def next_row(self) -> None:
        self._rows.append(torch.zeros_like(self._empty))

    def put(self, column: int, values: Tensor) -> None:
        self._rows[-1][:, column + self._radius] = values

    def at(self, column: int) -> Tensor:
        *above, own = self._rows
        seen = [row[:, column : column + 2 * self._radius + 1].flatten(1) for row in above]
        seen.append(own[:, column : column + self._radius + self._centre].flatten(1))
        return torch.addmm(self._bias, torch.cat(seen, dim=1), self._matrix)


def pixels_in_order(height: int, width: int, decoder: Decoder) -> Iterator[tuple[int, int]]:
    """Rows and columns in reading order, with the decoder's rows advanced."""
    for row in range(height):
        decoder.next_row()
        for column in range(width):
            yield row, column


class PixelCNNTrainer(BaselineTrainer):
    """Trains a PixelCNN on clean images, by maximum likelihood."""

    command: ClassVar[str] = f"comdefend train-baseline {KIND}"
    kind: ClassVar[str] = KIND
    model: PixelCNN
    unit: ClassVar[str] = "bits a channel of a pixel"

    def __init__(
        self, config: BaselineConfig, dataset: Dataset, device: torch.device, architecture: PixelCNNArchitecture | None = None
    ) -> None:
        with fix_seed(config.seed):
            model = PixelCNN(architecture or PixelCNNArchitecture(dataset.train.channels))
        kernels = [cast(nn.Parameter, cast(CausalConv, block).weight) for block in model.blocks]
        super().__init__(model, kernels, config, dataset, device)

    def loss(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Bits a channel of a pixel."""
        levels = pixels.to(self.device).float().contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return bits_per_dimension(self.model.log_probability(levels), pixels.shape[1])

    @torch.no_grad()
    def measure(self, count: int) -> float:
        """Bits a channel of a pixel on the first test images, in float32."""
        self.model.eval()
        parts = [self.model.log_probability(part.to(self.device).float()) for part in torch.split(self.dataset.test.pixels[:count], 64)]
        return float(bits_per_dimension(torch.cat(parts), self.model.architecture.channels))


def load(path: Path) -> StoredNetwork[PixelCNN]:
    """Read a weight file; raises as :func:`.network_files.load_network`."""
    return load_network(path, KIND, lambda fields: PixelCNN(PixelCNNArchitecture(**fields)))
