"""Which formats are read and written, what each has a place for, and which a file's name asks for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from comdefend_cli.errors import ImageError, UsageError
from comdefend_cli.imaging.limits import refuse_sides
from comdefend_cli.imaging.raster import Raster

#: Formats whose writer changes pixels, and how.
LOSSY = {
    "JPEG": "JPEG compression",
    "AVIF": "AVIF compression",
    "GIF": "a palette of 256 colours",
}
#: Formats whose writer is told a quality.
WITH_QUALITY = ("JPEG", "AVIF")
#: Formats that hold any image at its own size; the others of Pillow's make icons, documents or bitmaps of it.
WRITABLE = {"PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "SGI"}
#: What is decoded; not what Pillow hands to other programs (EPS to Ghostscript) or to plug-ins.
READABLE = WRITABLE | {"DDS", "DIB", "ICNS", "ICO", "MSP", "PSD", "QOI", "SUN", "XBM", "XPM"}
ALPHA = {"PNG", "WEBP", "TIFF", "TGA", "JPEG2000", "AVIF"}
#: Formats that are read with transparency and written without.
LOSES_ALPHA = {"BMP", "GIF", "PPM", "SGI"}


@cache
def find_readable_formats() -> list[str]:
    """The formats of `READABLE` that this Pillow was built with."""
    Image.init()
    return sorted(READABLE & Image.OPEN.keys())


@cache
def list_suffixes(*, writable: bool) -> dict[str, str]:
    """File name endings (".png") to Pillow's format names, of those that can be read, or written."""
    Image.init()
    able = WRITABLE & Image.SAVE.keys() if writable else set(find_readable_formats())
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in able}


def find_format(path: Path) -> str:
    """The format a file name's ending asks for, as Pillow names it.

    Raises:
        UsageError: no ending, or one that cannot be written.
    """
    name = list_suffixes(writable=True).get(path.suffix.lower())
    if name is None:
        raise UsageError(f"{path}: cannot write an image with the ending {path.suffix!r}; use .png, .jpg, .webp, .tiff or .bmp")
    return name


def refuse_quality(format_name: str, quality: int | None) -> None:
    """Raise :class:`UsageError` when a quality is given for a format that has none."""
    if quality is not None and format_name not in WITH_QUALITY:
        raise UsageError(f"--quality is for {' and '.join(WITH_QUALITY)}, {format_name} has none: leave it out, or write another format")


def refuse_misfit(image: Raster, format_name: str) -> None:
    """Raise :class:`ImageError` when a format has no place for an image's alpha or size."""
    if image.alpha is not None and format_name not in ALPHA:
        raise ImageError(f"{format_name} has no transparency, which this image has; write .png, .webp or .tiff")
    height, width = image.pixels.shape[:2]
    refuse_sides(format_name, width, height)
