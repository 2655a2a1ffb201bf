"""Folders of images: found, listed and decoded in one way, whatever they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import DatasetError, ImageError
from comdefend_cli.imaging.formats import list_suffixes
from comdefend_cli.imaging.reading import read_image

#: The pixels of a folder of images, which are all kept in memory.
MAX_IMAGE_BYTES = 4 * 2**30


def find_folder(name: str, alternatives: str) -> Path:
    """The folder of that name.

    Raises:
        DatasetError: there is none; the message ends in `alternatives`.
    """
    try:
        if name and Path(name).is_dir():
            return Path(name)
    except OSError:  # A name that no folder can have.
        pass
    raise DatasetError(f"{name}: no such data set or folder; use {alternatives}")


def list_images(folder: Path) -> list[Path]:
    """Files anywhere below a folder whose names end as those of images do, in order."""
    known = list_suffixes(writable=False)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())


def decode_images(
    folder: Path, paths: Sequence[Path], fit: Callable[[np.ndarray], np.ndarray | None], remedy: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode files to be kept in memory, one after another; those that cannot be read are left out.

    Args:
        folder: what errors name.
        paths: of the files.
        fit: makes of an image, uint8 (H, W, C), what is kept of it, or None to leave it out.
        remedy: for images that take too much memory.

    Yields:
        The place in `paths`, and what `fit` made.

    Raises:
        DatasetError: the images take more than `MAX_IMAGE_BYTES`.
    """
    size = 0
    for place, path in enumerate(paths):
        try:
            pixels = fit(read_image(path).pixels)
        except ImageError:
            continue
        if pixels is None:
            continue
        size += pixels.nbytes
        if size > MAX_IMAGE_BYTES:
            raise DatasetError(f"{folder}: its images take more than {MAX_IMAGE_BYTES >> 30} GiB of memory; {remedy}")
        yield place, pixels


def read_folder(folder: Path, crop: int, shrink: int = 1) -> Dataset:
    """Images below a folder as random crops, see :class:`.Crops`; one in twenty, evenly spread, is kept for testing."""
    paths = list_images(folder)

    def fit(pixels: np.ndarray) -> np.ndarray | None:
        return pixels if min(pixels.shape[:2]) >= crop else None

    decoded = decode_images(folder, paths, fit, "use fewer or smaller ones")
    found = [torch.from_numpy(pixels).permute(2, 0, 1) for _, pixels in decoded]
    if len(found) < 2:
        raise DatasetError(f"{folder}: needs at least 2 readable images of {crop}x{crop} pixels or more, found {len(found)}")
    skipped = len(paths) - len(found)
    if any(each.shape[0] == 3 for each in found):
        found = [each.expand(3, -1, -1) for each in found]
    held_out = found[::20]
    del found[::20]
    test = Crops(held_out, crop).batch(max(64, len(held_out)), torch.Generator().manual_seed(0))
    return Dataset(f"folder:{folder.name}", Crops(found, crop, shrink), ImageArray(test, torch.empty(0, dtype=torch.int64)), skipped)
