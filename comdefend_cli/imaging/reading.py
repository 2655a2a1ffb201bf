"""Image files to 8-bit arrays: what is decoded, up to which size, and one error for whatever is wrong with a file."""

from __future__ import annotations

import ctypes
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, _imaging

from comdefend_cli.errors import ImageError, explain
from comdefend_cli.imaging.conversion import from_pillow, has_alpha
from comdefend_cli.imaging.formats import find_readable_formats
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS, refuse_megapixels
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.recovery import can_recover, recover

#: How Pillow's decoders say that a file may be whole, but is of a kind that they do not know.
_UNKNOWN_KIND = re.compile(
    r"unsupported|unimplemented|not (implemented|supported|configured)|unknown|cannot (handle|decode)|not available", re.I
)


def read_image(source: Path | bytes, *, name: str = "standard input", max_megapixels: float = MAX_MEGAPIXELS) -> Raster:
    """Decode a file, or the bytes of one, which errors call `name`.

    Raises:
        ImageError: missing, empty, truncated, not an image, too large, or of a kind that cannot be purified.
    """
    name = name if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, Path) and source.is_dir():
            raise ImageError(f"{name}: is a folder; name an image in it, or use comdefend purify-dir")
        if isinstance(source, Path) and (source.is_char_device() or source.is_block_device()):
            raise ImageError(f"{name}: is a device, which may have no end; name a file, or - for standard input")
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: cannot read: {explain(error)}; name an image that is there and that you may read") from error
    if not data:
        raise ImageError(f"{name}: is empty; nothing to purify")
    with _decoding(name, max_megapixels):
        spare = data if can_recover(data) else None
        file = io.BytesIO(data)
        del data
        try:
            return _decode(file, name, max_megapixels)
        except (ImageError, MemoryError, Image.DecompressionBombError):
            raise
        except Exception:  # Pillow's decoders raise whatever their parsing meets.
            raster = None if spare is None else _decode_recovered(spare, name, max_megapixels)
            if raster is None:
                raise
            return raster


def _decode(file: io.BytesIO, name: str, max_megapixels: float) -> Raster:
    with Image.open(file, formats=find_readable_formats()) as image:
        refuse_megapixels(name, *image.size, max_megapixels)
        return from_pillow(image)


def _decode_recovered(data: bytes, name: str, max_megapixels: float) -> Raster | None:
    """What can be had of a file that cannot be decoded as it is, if all of its pixels can."""
    found = recover(data)
    try:
        if found is None:
            return None
        raster = _decode(io.BytesIO(found[0]), name, max_megapixels)
    except Exception:  # What is wrong with the file as it is tells more.
        return None
    raster.notices.insert(0, found[1])
    return raster


@contextmanager
def open_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """An image file that is open and not decoded yet; errors as of :func:`read_image`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path}: cannot read: {explain(error)}; name an image that is there and that you may read") from error
    with file, _decoding(str(path), max_megapixels), Image.open(file, formats=find_readable_formats()) as image:
        refuse_megapixels(str(path), *image.size, max_megapixels)
        yield image


def read_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height in pixels that the header of an image file tells; errors as Pillow's.

    Pillow takes a WebP's memory, all of it, when it opens one, so that its header is read here (RFC 9649, 2.4 to 2.7).
    """
    head = file.read(30)
    file.seek(0)
    if len(head) == 30 and head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        kind, content = head[12:16], head[20:]
        if kind == b"VP8X":
            return int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1
        if kind == b"VP8L":
            bits = int.from_bytes(content[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return int.from_bytes(content[6:8], "little") & 0x3FFF, int.from_bytes(content[8:10], "little") & 0x3FFF
    with Image.open(file, formats=find_readable_formats()) as image:
        return image.size


def tells_alpha(file: BinaryIO) -> bool:
    """Whether the header of an image file tells of transparency; one that cannot be read tells of none."""
    try:
        with Image.open(file, formats=find_readable_formats()) as image:
            return has_alpha(image)
    except Exception:  # Reading the image will say it.
        return False


def prepare_pillow(max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Let only `max_megapixels` decide what is too large, also of images within images, and let decoders speak in errors alone.

    Pillow's own limit warns at 89 megapixels and ends at 179. For programs, not libraries: the settings are Pillow's and libtiff's, and
    hold for the whole process.
    """
    # Pillow ends at twice its limit.
    Image.MAX_IMAGE_PIXELS = max(1, int(max_megapixels * 1e6 / 2)) if math.isfinite(max_megapixels) else None
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    if not logging.getLogger("PIL").handlers:
        logging.getLogger("PIL").addHandler(logging.NullHandler())
    library = ctypes.CDLL(_imaging.__file__)  # Libraries that it is linked with are searched too.
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        setter = getattr(library, name, None)  # None where libtiff is hidden within it, as on Windows.
        if setter is not None:
            setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            setter(None)


@contextmanager
def _decoding(name: str, max_megapixels: float) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_explain_size(error, max_megapixels)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or of an unknown format; use PNG, JPEG, WebP, TIFF, BMP, GIF or PPM") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for this machine's memory") from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets.
        if isinstance(error, NotImplementedError) or _UNKNOWN_KIND.search(str(error)):
            raise ImageError(f"{name}: of a kind that is not supported: {explain(error)}; save it as PNG") from error
        raise ImageError(f"{name}: damaged or truncated image: {explain(error)}; get a whole copy") from error


def _explain_size(error: Image.DecompressionBombError, max_megapixels: float) -> str:
    """What is too large by Pillow's own check, which also looks at images within images."""
    pixels, limit = [int(number) / 1e6 for number in re.findall(r"\d+", str(error))[:2]]
    if round(limit, 5) != round(max_megapixels, 5):
        return f"over Pillow's limit: {explain(error)}"
    return f"{pixels:.0f} megapixels, over the limit of {max_megapixels:g}; raise it with --max-megapixels if you trust the file"
