"""The images that a reference classifier learns from: purified, noisy, shifted and mirrored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from comdefend_cli.inference.purifier import Purifier

#: Pixels that a training image is shifted by at most, reflected at the border.
SHIFT = 4


def purify_images(purifier: Purifier, images: Tensor, progress: Callable[[int], None] | None = None, batch: int = 256) -> Tensor:
    """All images through the purifier, once, before training (4.4.2): uint8 (N, C, H, W) to the same."""
    parts = []
    for part in torch.split(images, batch):
        parts.append(purifier.purify(part))
        if progress:
            progress(len(part))
    return torch.cat(parts)


def add_noise(images: Tensor, most: float, seed: int, batch: int = 1000) -> Tensor:
    """Gaussian noise on all images, each of a standard deviation of its own, drawn from 0 to `most` 8-bit levels: uint8 to uint8."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in torch.split(images, batch):
        std = torch.rand((len(part), 1, 1, 1), generator=generator) * most
        parts.append((part + std * torch.randn(part.shape, generator=generator)).round().clamp(0, 255).byte())
    return torch.cat(parts)


def augment(x: Tensor, generator: torch.Generator, *, mirror: bool = True, cutout: int = 0) -> Tensor:
    """Shift each image by up to `SHIFT` pixels, reflected at the border, mirror half of them left to right, and hide a square of each.

    Args:
        x: (N, C, H, W), on any device.
        generator: all that decides, a CPU's.
        mirror: off for images of digits.
        cutout: side of the square that takes the images' mean colour (DeVries and Taylor, 2017, arXiv:1708.04552), in pixels. Its
            centre may be any pixel, so it may reach beyond the image.
    """
    count, height, width = len(x), x.shape[2], x.shape[3]
    padded = pad(x, (SHIFT,) * 4, mode="reflect")
    top, left = (torch.randint(2 * SHIFT + 1, (count, 1), generator=generator) for _ in range(2))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flipped = (torch.rand((count, 1), generator=generator) < 0.5) & mirror
    rows, columns = rows.to(x.device), torch.where(flipped, columns.flip(1), columns).to(x.device)
    image = torch.arange(count, device=x.device)[:, None, None]
    # Indices around a slice put the channels last.
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if not cutout:
        return moved
    rows, columns = (_run(side, cutout, count, generator).to(x.device) for side in (height, width))
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], moved.mean((0, 2, 3), keepdim=True), moved)


def _run(side: int, length: int, count: int, generator: torch.Generator) -> Tensor:
    """For each of `count` images a run of so many places with its middle anywhere on a side: bool (count, side)."""
    first = torch.randint(side, (count, 1), generator=generator) - length // 2
    place = torch.arange(side)
    return (place >= first) & (place < first + length)
