"""8-bit arrays to image files, whole or not at all."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from comdefend_cli.errors import ImageError, explain
from comdefend_cli.imaging.formats import WITH_QUALITY, find_format, refuse_misfit
from comdefend_cli.imaging.metadata import choose_save_options
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.tiff_blocks import CAMERA, PLACE, append_blocks, split_blocks
from comdefend_cli.runtime.files import open_atomically

#: How each format is written: best fidelity, since the purified pixels are what counts.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "quality": 50, "exact": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
#: Keeps AVIF's alpha bit for bit, whatever becomes of the colours; known to libaom, which is the encoder of Pillow's own packages.
_AVIF_ALPHA = {"alpha:lossless": "1"}
#: What is said about an image, in words.
_SAID = {"exif": "EXIF block", "icc": "ICC profile", "xmp": "XMP packet", "iptc": "IPTC block"}
#: EXIF tags that are tried one by one.
_MOST_TAGS = 1000
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
    if format_name == "AVIF" and raster.alpha is not None:
        options["advanced"] = _AVIF_ALPHA
    image = raster.to_pillow()
    image.info.clear()
    if not strip:
        options |= choose_save_options(raster, format_name)
    try:
        with _buffer(raster.megapixels) as buffer:
            image.save(buffer, format_name, **options)
            buffer.seek(0)
            data = buffer.read()
        return append_blocks(data, split_blocks(raster.exif)[1]) if format_name == "TIFF" and raster.exif and not strip else data
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers raise whatever they meet.
        raise ImageError(f"cannot write this image as {format_name}: {explain(error)}; write .png instead") from error


def fit_to_format(raster: Raster, format_name: str, *, strip: bool = False) -> Raster:
    """An image as a format holds it: without what is said about it that the format's writer refuses; its notices tell of that.

    Raises:
        ImageError: the format has no place for its alpha or its size.
    """
    refuse_misfit(raster, format_name)
    said = [name for name in ("exif", "icc", "xmp", "iptc") if getattr(raster, name)]
    if strip or not said or _takes(raster, format_name):
        return raster
    notices = list(raster.notices)
    if raster.exif and not _takes(_only(raster, exif=raster.exif), format_name):
        exif, left_out = _drop_tags(raster, format_name)
        what = f"EXIF tags {', '.join(map(str, left_out))}" if exif else "its EXIF block"
        notices.append(f"{what} cannot be written as {format_name} and {'were' if exif else 'was'} left out")
        raster = replace(raster, exif=exif)
    for name in said:
        value = getattr(raster, name)
        if value and not _takes(_only(raster, **{name: value}), format_name):
            notices.append(f"its {_SAID[name]} cannot be written as {format_name} and was left out")
            raster = replace(raster, **{name: None})  # type: ignore[arg-type]  # Each may be None.
    return replace(raster, notices=notices)


def _drop_tags(raster: Raster, format_name: str) -> tuple[bytes | None, list[int]]:
    """The EXIF block without the tags that a format's writer refuses, or None where nothing is left; and these tags."""
    tags, left_out = Image.Exif(), []
    tags.load(raster.exif or b"")
    for tag in list(tags) if len(tags) <= _MOST_TAGS else ():
        if not _takes_tag(raster, format_name, tag, tags[tag]):
            left_out.append(tag)
            del tags[tag]
    exif = tags.tobytes() if len(tags) else None
    return (exif if exif and _takes(_only(raster, exif=exif), format_name) else None), left_out


def _takes_tag(raster: Raster, format_name: str, tag: int, value: Any) -> bool:
    one = Image.Exif()
    if tag in (CAMERA, PLACE):
        one.load(raster.exif or b"")
        for other in one.keys() - {tag}:
            del one[other]
    else:
        one[tag] = value
    try:
        return _takes(_only(raster, exif=one.tobytes()), format_name)
    except Exception:  # A value that no block can hold; its writing raises whatever it meets.
        return False


def _only(raster: Raster, **said: bytes) -> Raster:
    return Raster(raster.pixels[:1, :1], **said)  # type: ignore[arg-type]  # Each is bytes.


def _takes(raster: Raster, format_name: str) -> bool:
    """Whether a format's writer takes what is said about an image, and its reader too, found out on one pixel of it."""
    try:
        data = encode_image(replace(raster, pixels=raster.pixels[:1, :1], alpha=None), format_name)
        with Image.open(io.BytesIO(data), formats=[format_name]) as image:
            image.load()
    except Exception:  # Pillow's decoders raise whatever their parsing meets.
        return False
    return True


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
