"""Folders of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import DatasetError, ImageError
from comdefend_cli.imaging.formats import list_suffixes
from comdefend_cli.imaging.reading import read_image

#: The pixels of a folder of images, which are all kept in memory.
MAX_IMAGE_BYTES = 4 * 2**30


def read_folder(folder: Path, crop: int) -> Dataset:
    """Images below a folder as random crops; one in twenty, evenly spread, is kept for testing."""
    known = list_suffixes(writable=False)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    found, size = [], 0
    for path in paths:
        each = _read_crop_source(path, crop)
        if each is None:
            continue
        found.append(each)
        size += each.numel()
        if size > MAX_IMAGE_BYTES:
            raise DatasetError(f"{folder}: its images take more than {MAX_IMAGE_BYTES >> 30} GiB of memory; use fewer or smaller ones")
    if len(found) < 2:
        raise DatasetError(f"{folder}: needs at least 2 readable images of {crop}x{crop} pixels or more, found {len(found)}")
    skipped = len(paths) - len(found)
    if any(each.shape[0] == 3 for each in found):
        found = [each.expand(3, -1, -1) for each in found]
    held_out = found[::20]
    del found[::20]
    test = Crops(held_out, crop).batch(max(64, len(held_out)), torch.Generator().manual_seed(0))
    return Dataset(f"folder:{folder.name}", Crops(found, crop), ImageArray(test, torch.empty(0, dtype=torch.int64)), skipped)


def _read_crop_source(path: Path, crop: int) -> Tensor | None:
    """An image, uint8 (C, H, W), or None where there is none of a crop's size."""
    try:
        pixels = read_image(path).pixels
    except ImageError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if min(pixels.shape[:2]) >= crop else None
