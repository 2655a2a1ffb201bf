"""8-bit arrays to image files, whole or not at all."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from comdefend_cli.errors import ImageError, explain
from comdefend_cli.imaging.formats import WITH_QUALITY, find_format, refuse_misfit
from comdefend_cli.imaging.metadata import choose_save_options
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.runtime.files import open_atomically

#: How each format is written: best fidelity, since the purified pixels are what counts.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "quality": 50, "exact": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
#: Megapixels from which an image is encoded into a file in memory: a thumbnail is done before the file is made.
_FILE_MEGAPIXELS = 0.25


def encode_image(raster: Raster, format_name: str, *, quality: int | None = None, strip: bool = False) -> bytes:
    """The bytes of an image file.

    Args:
        raster: what to write.
        format_name: as Pillow names it.
        quality: 1 to 100 for lossy formats, 95 by default.
        strip: leave ICC profile, EXIF, XMP and IPTC out.

    Raises:
        ImageError: the format has no place for this image (its alpha, its size).
    """
    refuse_misfit(raster, format_name)
    options = dict(SAVE_OPTIONS.get(format_name, {}))
    if quality is not None and format_name in WITH_QUALITY:
        options["quality"] = quality
    image = raster.to_pillow()
    image.info.clear()
    if not strip:
        options |= choose_save_options(raster, format_name)
    try:
        with _buffer(raster.megapixels) as buffer:
            image.save(buffer, format_name, **options)
            buffer.seek(0)
            return buffer.read()
    except (OSError, ValueError, KeyError, struct.error, OverflowError) as error:
        raise ImageError(f"cannot write this image as {format_name}: {explain(error)}; write .png instead") from error


def _buffer(megapixels: float) -> BinaryIO:
    """Where an image is encoded. While Pillow encodes a JPEG into a file, as this is on Linux, other threads go on; into bytes, none."""
    if megapixels < _FILE_MEGAPIXELS or not hasattr(os, "memfd_create"):
        return io.BytesIO()
    return os.fdopen(os.memfd_create("image", os.MFD_CLOEXEC), "w+b")


def write_image(path: Path, image: Raster, *, quality: int | None = None, strip: bool = False, overwrite: bool = False) -> None:
    """Write an image by its ending, whole or not at all.

    Raises:
        UsageError: the file exists and `overwrite` is false, or its ending is unknown.
        ComdefendError: it cannot be written.
    """
    try:
        data = encode_image(image, find_format(path), quality=quality, strip=strip)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    with open_atomically(path, overwrite=overwrite) as file:
        file.write(data)
