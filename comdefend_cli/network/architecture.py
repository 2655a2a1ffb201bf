"""The two families of networks, as the header of a weight file describes them.

    PaperArchitecture      nine 3x3 convolutions, ELU between them (tables 1 and 2 of the paper); every layer at full resolution
    ResidualArchitecture   at 1/downscale of the resolution: a 3x3 convolution, residual blocks, LeakyReLU, a 3x3 convolution

Each says which layers both networks have; all that computes networks walks over these, see :class:`.model.Network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from comdefend_cli.network.layers import ELU, Conv3x3, LeakyReLU, Residual

CHANNELS = (1, 3)
BITS = (4, 8, 10, 12, 14, 16)
#: Output channels of ComCNN's first eight layers (table 1; its "356" is 256, as layer 6 says).
HIDDEN = (16, 32, 64, 128, 256, 128, 64, 32)
#: Factors by which networks of the second family make an image smaller.
DOWNSCALES = (2, 4)


@dataclass(frozen=True)
class Architecture(ABC):
    """What a weight file must say to rebuild its networks; one of the two families below.

    Attributes:
        channels: colour channels of the image, 1 or 3.
        bits: code bits a pixel, one of `BITS`.

    Raises:
        ValueError: a value outside those ranges.
    """

    channels: int = 3
    bits: int = 12

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise ValueError(f"channels must be one of {CHANNELS}, not {self.channels}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")

    @property
    @abstractmethod
    def scale(self) -> int:
        """The side in pixels of the squares whose values the layers see as channels of one place; 1 where they see pixels."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """The most values a pixel of any layer's output."""

    @abstractmethod
    def make_com_layers(self) -> list[nn.Module]:
        """The layers of ComCNN, with new weights."""

    @abstractmethod
    def make_rec_layers(self) -> list[nn.Module]:
        """The layers of RecCNN, with new weights."""


@dataclass(frozen=True)
class PaperArchitecture(Architecture):
    """The paper's networks: 1.57 million multiply-adds a pixel with the default widths.

    Attributes:
        hidden: output channels of ComCNN's first eight layers; RecCNN mirrors them.
    """

    hidden: tuple[int, ...] = HIDDEN

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden) != len(HIDDEN) or not all(1 <= width <= 1024 for width in self.hidden):
            raise ValueError(f"hidden must be {len(HIDDEN)} widths from 1 to 1024, not {self.hidden}")

    @property
    def scale(self) -> int:
        """1."""
        return 1

    @property
    def widest(self) -> int:
        """The most values a pixel of any layer's output."""
        return max(*self.hidden, self.bits)

    def make_com_layers(self) -> list[nn.Module]:
        """Section 3.2, table 1."""
        return _alternate((self.channels, *self.hidden, self.bits))

    def make_rec_layers(self) -> list[nn.Module]:
        """Section 3.3, table 2."""
        return _alternate((self.bits, *reversed(self.hidden), self.channels))


@dataclass(frozen=True)
class ResidualArchitecture(Architecture):
    """Networks that see squares of pixels as channels (pixel-unshuffle), and so compute a fraction of the places.

    Attributes:
        downscale: the squares' side, one of `DOWNSCALES`.
        width: channels of the residual blocks, from 1 to 1024.
        blocks: how many of them each network has, from 0 to 64.
    """

    downscale: int = 2
    width: int = 64
    blocks: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downscale not in DOWNSCALES:
            raise ValueError(f"downscale must be one of {DOWNSCALES}, not {self.downscale}")
        if not 1 <= self.width <= 1024:
            raise ValueError(f"width must be from 1 to 1024, not {self.width}")
        if not 0 <= self.blocks <= 64:
            raise ValueError(f"blocks must be from 0 to 64, not {self.blocks}")

    @property
    def scale(self) -> int:
        """`downscale`."""
        return self.downscale

    @property
    def widest(self) -> int:
        """The most values a pixel of any layer's output."""
        return max(-(-self.width // self.downscale**2), self.bits)

    def make_com_layers(self) -> list[nn.Module]:
        """From an image's squares to the logits of theirs."""
        return self._make_layers(self.channels, self.bits)

    def make_rec_layers(self) -> list[nn.Module]:
        """And back."""
        return self._make_layers(self.bits, self.channels)

    def _make_layers(self, inputs: int, outputs: int) -> list[nn.Module]:
        square, width = self.downscale**2, self.width
        blocks = [Residual(width) for _ in range(self.blocks)]
        return [Conv3x3(inputs * square, width), *blocks, LeakyReLU(), Conv3x3(width, outputs * square)]


def _alternate(widths: Sequence[int]) -> list[nn.Module]:
    """3x3 convolutions from each width to the next, an ELU after each but the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [Conv3x3(inputs, outputs), ELU()]
    return layers[:-1]
