"""Image files to 8-bit arrays: what is decoded, up to which size, and one error for whatever is wrong with a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from comdefend_cli.errors import ImageError, explain
from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.formats import find_readable_formats
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS, refuse_megapixels
from comdefend_cli.imaging.raster import Raster


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
    with _decoding(name), Image.open(io.BytesIO(data), formats=find_readable_formats()) as image:
        refuse_megapixels(name, *image.size, max_megapixels)
        del data
        return from_pillow(image)


@contextmanager
def open_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """An image file that is open and not decoded yet; errors as of :func:`read_image`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path}: cannot read: {explain(error)}; name an image that is there and that you may read") from error
    with file, _decoding(str(path)), Image.open(file, formats=find_readable_formats()) as image:
        refuse_megapixels(str(path), *image.size, max_megapixels)
        yield image


def lift_pillow_limit() -> None:
    """Let only `max_megapixels` decide what is too large: Pillow's own limit warns at 89 megapixels and ends at 179.

    For programs, not libraries: the setting is Pillow's and holds for the whole process.
    """
    Image.MAX_IMAGE_PIXELS = None


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: over Pillow's limit: {explain(error)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or of an unknown format; use PNG, JPEG, WebP, TIFF, BMP, GIF or PPM") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for this machine's memory") from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets.
        raise ImageError(f"{name}: damaged or truncated image: {explain(error)}; get a whole copy") from error
