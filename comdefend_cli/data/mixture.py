"""Training batches of several sources, and what makes them more varied: other colours, no colours, small images."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import TypeGuard

import torch
from torch import Tensor

from comdefend_cli.data.sources import Dataset, ImageArray, TrainingImages
from comdefend_cli.errors import UsageError
from comdefend_cli.network.luma import take_luma

#: Sides below which an image is small: all of it is near a border.
SMALL = 32


@dataclass(frozen=True)
class Variation:
    """Changes of training images.

    Attributes:
        jitter: share of the images whose saturation, hue and exposure change at random.
        small: share of the batches that are cut to images of random sides from 1 to `SMALL` - 1 pixels,
            as many below each power of two as below the next.
        gray: whether colours become grey.
    """

    jitter: float = 0.0
    small: float = 0.0
    gray: bool = False

    def apply(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Uint8 (N, C, H, W) to (N or a multiple of it, 1 or C, H or less, W or less)."""
        if self.jitter and pixels.shape[1] == 3:
            chosen = torch.rand(len(pixels), generator=generator) < self.jitter
            pixels = torch.where(chosen[:, None, None, None], jitter_colors(pixels, generator), pixels)
        if self.gray and pixels.shape[1] == 3:
            pixels = take_luma(pixels.float()).round().byte()
        if self.small and torch.rand((), generator=generator) < self.small:
            height, width = (SMALL ** torch.rand(2, generator=generator)).long().clamp(1, SMALL - 1).tolist()
            pixels = cut_grid(pixels, height, width)
        return pixels


@dataclass(frozen=True)
class Mixture:
    """Batches each of one source, which is drawn.

    Attributes:
        parts: the sources; one that is there twice is drawn twice as often.
        variation: of their images.
    """

    parts: tuple[TrainingImages, ...]
    variation: Variation = Variation()

    def __len__(self) -> int:
        return sum(len(part) for part in {id(part): part for part in self.parts}.values())

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.variation.gray else self.parts[0].channels

    @property
    def side(self) -> int:
        """Of the largest images."""
        return max(part.side for part in self.parts)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """A batch of :meth:`draw`."""
        return self.draw(size, generator)[1]

    def draw(self, size: int, generator: torch.Generator) -> tuple[int, Tensor]:
        """The place of a source in `parts`, and a batch of it, uint8 (N, C, H, W).

        N is `size` for the sources of the largest images; of smaller ones there are as many more, so that batches have as many pixels.
        """
        place, size = self._choose(size, generator)
        return place, self.variation.apply(self.parts[place].batch(size, generator), generator)

    def draw_labelled(self, size: int, generator: torch.Generator, *, mirror: bool) -> tuple[Tensor, Tensor | None]:
        """As :meth:`draw` a batch, and its labels, int64 (N,), or None of a source without labels.

        Args:
            size: as there.
            generator: all that decides.
            mirror: whether images with labels are mirrored at random; those without always are.
        """
        place, size = self._choose(size, generator)
        part = self.parts[place]
        if not has_labels(part):
            return self.variation.apply(part.batch(size, generator), generator), None
        pixels, places = part.draw(size, generator, mirror=mirror)
        return self.variation.apply(pixels, generator), part.labels[places]

    def _choose(self, size: int, generator: torch.Generator) -> tuple[int, int]:
        """The place of a source, and how many of its images are a batch."""
        # The stream of one source alone is what it was before there were mixtures.
        place = int(torch.randint(len(self.parts), (), generator=generator)) if len(self.parts) > 1 else 0
        return place, size * (self.side // self.parts[place].side) ** 2


def has_labels(part: TrainingImages) -> TypeGuard[ImageArray]:
    """Whether a source knows the classes of its images."""
    return isinstance(part, ImageArray) and len(part.labels) > 0


def join_datasets(parts: list[Dataset], *, gray: bool = False) -> Dataset:
    """One data set of several, tested on the first one's images; of a single one, it as it is.

    Args:
        parts: which.
        gray: whether their colours will become grey.

    Raises:
        UsageError: colour and grey together, and they stay so.
    """
    if len(parts) == 1:
        return parts[0]
    if not gray and len({part.train.channels for part in parts}) > 1:
        raise UsageError("--data names colour and grey images: train on one of the two, or make all grey with --gray")
    name = "+".join(part.name for part in parts)
    skipped = {id(part): part.skipped for part in parts}
    return Dataset(name, Mixture(tuple(part.train for part in parts)), parts[0].test, sum(skipped.values()))


def cut_grid(pixels: Tensor, height: int, width: int) -> Tensor:
    """All images (N, C, H, W) cut to as many of that size, at most, as lie in them side by side: (N times as many, C, height, width)."""
    height, width = min(height, pixels.shape[2]), min(width, pixels.shape[3])
    cut = pixels.unfold(2, height, height).unfold(3, width, width)  # (N, C, rows, columns, height, width)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, pixels.shape[1], height, width)


def jitter_colors(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Colour images, uint8 (N, 3, H, W), each with its own change of saturation (0 to 2), hue (any) and exposure (-1 to 0.5 stops)."""
    count = len(pixels)
    saturation, turn, exposure = torch.rand((3, count), generator=generator).unbind()
    saturation, turn, exposure = 2 * saturation, (2 * turn - 1) * pi, 2 ** (1.5 * exposure - 1)
    x = pixels.float()
    luma = take_luma(x)
    # Hue turns about the grey axis: Rodrigues' formula for the axis (1, 1, 1).
    c, s = turn.cos(), turn.sin()
    third, root = (1 - c) / 3, s / 3**0.5
    rows = [third + c, third - root, third + root]
    matrix = torch.stack([torch.stack([rows[(j - i) % 3] for j in range(3)], 1) for i in range(3)], 1)
    turned = torch.einsum("nij,njhw->nihw", matrix, x - luma)
    view = (count, 1, 1, 1)
    return ((luma + saturation.view(view) * turned) * exposure.view(view)).round_().clamp_(0, 255).byte()
