"""Where training batches come from, and a data set in its two parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

#: Side of the random crops of a folder's images, in pixels: as large as CIFAR-10's images.
CROP = 32


class TrainingImages(Protocol):
    """Where training batches come from."""

    def __len__(self) -> int: ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    @property
    def side(self) -> int:
        """Of an image, in pixels."""
        ...

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` random images, uint8 (size, channels, side, side), drawn by the generator alone."""
        ...


@dataclass(frozen=True)
class ImageArray:
    """Images of one size in memory.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,), or empty where there are none.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.pixels.shape[1])

    @property
    def side(self) -> int:
        """Of an image, in pixels; its height where that is another than its width."""
        return int(self.pixels.shape[2])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` images drawn with replacement, mirrored at random left to right."""
        return self.draw(size, generator)[0]

    def draw(self, size: int, generator: torch.Generator, *, mirror: bool = True) -> tuple[Tensor, Tensor]:
        """A :meth:`batch`, or one that is not mirrored, and the places of its images, int64 (size,)."""
        places = torch.randint(len(self), (size,), generator=generator)
        chosen = self.pixels[places]
        flipped = (torch.rand(size, 1, 1, 1, generator=generator) < 0.5) & mirror
        return torch.where(flipped, chosen.flip(3), chosen), places


@dataclass(frozen=True)
class Crops:
    """Random square crops of images of any size, all decoded in memory.

    Attributes:
        images: uint8 (C, H, W) each, H and W at least `side`.
        side: of a crop, in pixels.
        shrink: the most that an image is made smaller before it is cropped: each by a whole factor of its own, by area, as a camera's
            pixels average light.
    """

    images: list[Tensor]
    side: int = CROP
    shrink: int = 1

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.images[0].shape[0])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` crops at random places of random images, mirrored at random left to right."""
        crops = []
        for index in torch.randint(len(self), (size,), generator=generator).tolist():
            image = self.images[index]
            most = min(self.shrink, min(image.shape[1:]) // self.side)
            factor = int(torch.randint(1, most + 1, (), generator=generator)) if most > 1 else 1
            side = self.side * factor
            top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in image.shape[1:])
            crop = image[:, top : top + side, left : left + side]
            if factor > 1:
                crop = avg_pool2d(crop.float(), factor).round_().byte()
            crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
        return torch.stack(crops)


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: for the weight file's header.
        train: what the networks learn from.
        test: what PSNR is measured on, uint8 (N, C, H, W).
        skipped: files in a folder of images that could not be read, or are smaller than a crop.
    """

    name: str
    train: TrainingImages
    test: ImageArray
    skipped: int = 0
