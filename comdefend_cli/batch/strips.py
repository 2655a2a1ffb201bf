"""Images too large to be held in memory: from file to file in strips of rows, read and written by libvips (extra `[large]`).

    purify_file(purifier, open_large_image(path), target)

A strip goes through the network with more rows above and below, as many as its result depends on and the image has, and only its own
rows are kept: the result is that of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from comdefend_cli.batch.large_image import LargeImage
from comdefend_cli.batch.rows_file import WRITERS, encode_rows, open_rows_file
from comdefend_cli.errors import UsageError
from comdefend_cli.imaging.formats import find_format
from comdefend_cli.inference.planning import DEFAULT_TILE
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.tiling import PATCH
from comdefend_cli.runtime.files import open_atomically, refuse_existing

#: Pixels of a strip, of which there are two copies and its tiles in float32, and rows that it has all the same: with fewer, much of a wide
#: image would be computed twice.
STRIP_PIXELS = 2**22
STRIP_ROWS = 256


def purify_file(
    purifier: Purifier,
    image: LargeImage,
    target: Path,
    *,
    strip: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Purify a file into another, whole or not at all.

    Args:
        purifier: what purifies; the result is that of the whole image, noise included.
        target: .png or .tiff.
        strip: leave ICC profile and EXIF out.
        overwrite: replace `target`.
        progress: called with the number of pixels done since the last call.

    Returns:
        The mean square difference to the input, in levels of 8 bits.

    Raises:
        UsageError: `target` is there and `overwrite` is false, or is of another format.
        ImageError: `image` is damaged.
        ComdefendError: `target` cannot be written.
    """
    format_name = find_format(target)
    if format_name not in WRITERS:
        raise UsageError(f"{target}: an image in strips is written as .png or .tiff")
    refuse_existing(target, overwrite=overwrite)
    error = 0.0
    with open_rows_file(target, image) as (raw, put):
        for before, after in iterate_strips(purifier, image):
            put(after.data)
            error += _sum_squares(before, after[..., : image.channels])
            if progress:
                progress(after.shape[0] * after.shape[1])
            del before, after  # Else they stay while the next strip is computed.
        with open_atomically(target, overwrite=overwrite) as file:
            encode_rows(image, raw, file.name, format_name, strip=strip)
    return error / (image.width * image.height * image.channels)


def _sum_squares(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of squared differences of two strips, row by row, since wider numbers of a whole strip would take the most memory of all."""
    return float(sum(int(np.square(row.astype(np.int32) - other).sum()) for row, other in zip(a, b, strict=True)))


def iterate_strips(purifier: Purifier, image: LargeImage) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Strips from top to bottom, uint8: the colours as they were (rows, width, channels), and purified with alpha (rows, width, bands)."""
    halo = purifier.halo
    rows = _count_rows(purifier, image.width, halo)
    window, top = np.empty((0, image.width, image.bands), np.uint8), 0
    for start in range(0, image.height, rows):
        stop, bottom = min(start + rows, image.height), min(start + rows + halo, image.height)
        kept = window[max(start - halo - top, 0) :].copy()
        top = max(start - halo, 0)
        window = np.empty((bottom - top, image.width, image.bands), np.uint8)
        window[: len(kept)] = kept
        image.read(window[len(kept) :])
        core = slice(start - top, stop - top)
        yield window[core, :, : image.channels], _purify_window(purifier, window, top, core, image.channels)


def _purify_window(purifier: Purifier, window: np.ndarray, top: int, core: slice, channels: int) -> np.ndarray:
    """The rows `core` of a window that begins at an image's row `top`, purified, with alpha; uint8 (rows, width, bands), contiguous."""
    colors = torch.from_numpy(window[..., :channels]).permute(2, 0, 1)[None]
    cleaned = purifier.purify(colors, top=top)[0, :, core].permute(1, 2, 0).numpy()
    alpha = window[core, :, channels:]
    return np.concatenate([cleaned, alpha], 2) if alpha.size else np.ascontiguousarray(cleaned)


def _count_rows(purifier: Purifier, width: int, halo: int) -> int:
    """Rows of a strip: with its halo as high as a tile, so that no row is computed more often than in the whole image, or what fits."""
    device = next(purifier.parameters()).device
    tile = purifier.settings.tile or DEFAULT_TILE[device.type]
    rows = max(min(tile - 2 * halo, max(STRIP_PIXELS // width, STRIP_ROWS)), 2 * halo)
    step = purifier.step if halo else PATCH
    return max(rows // step, 1) * step
