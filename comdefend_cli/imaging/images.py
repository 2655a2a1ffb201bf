"""Files and Pillow images to 8-bit arrays and back: orientation, alpha, profiles, depth, safe writing."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from comdefend_cli.errors import ImageError, UsageError, reason
from comdefend_cli.runtime.files import atomic

#: Largest image that is decoded unless asked otherwise; a small file can claim any size.
MAX_MEGAPIXELS = 512
#: How each format is written: best fidelity, since the purified pixels are what counts.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "quality": 50, "exact": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
#: Formats whose writer changes pixels, and how.
LOSSY = {
    "JPEG": "JPEG compression",
    "AVIF": "AVIF compression",
    "GIF": "a palette of 256 colours",
}
#: Formats that hold any image at its own size; the others of Pillow's make icons, documents or bitmaps of it.
WRITABLE = {"PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "SGI"}
#: What is decoded; not what Pillow hands to other programs (EPS to Ghostscript) or to plug-ins.
READABLE = WRITABLE | {"DDS", "DIB", "ICNS", "ICO", "MSP", "PSD", "QOI", "SUN", "XBM", "XPM"}
ALPHA = {"PNG", "WEBP", "TIFF", "TGA", "JPEG2000", "AVIF"}
#: Longest side in pixels of formats that hold less than 2**31.
MAX_SIDE = {"WEBP": 16383, "JPEG": 65500, **dict.fromkeys(("GIF", "TGA", "PCX", "SGI", "AVIF"), 65535)}
#: Megapixels from which an image is encoded into a file in memory: a thumbnail is done before the file is made.
_FILE_MEGAPIXELS = 0.25
_ORIENTATION = 0x0112
#: Tags of a TIFF file that are not about the image but about how this file holds it (TIFF 6.0, sections 8 to 22): written into
#: another file they would contradict it. And profile, XMP, IPTC and Photoshop blocks, which are not EXIF.
_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293, 301),
    *(317, *range(320, 344), 347, *range(512, 522), 529, 530, 531, 532),
    *(700, 33723, 34377, 34675, 37724),
}


@dataclass(frozen=True)
class Raster:
    """A decoded image, turned upright.

    Attributes:
        pixels: uint8 (H, W, C), C = 1 (grey) or 3 (RGB).
        alpha: uint8 (H, W) or None.
        icc: ICC profile of the pixels, or None.
        exif: EXIF block without orientation, or None.
        source: the format it was read from, as Pillow names it, or "".
        notices: what was changed in reading, one sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    source: str = ""
    notices: list[str] = field(default_factory=list)

    @property
    def gray(self) -> bool:
        """Whether the image has one channel."""
        return bool(self.pixels.shape[2] == 1)

    @property
    def megapixels(self) -> float:
        """Height times width, in millions."""
        return float(self.pixels.shape[0] * self.pixels.shape[1]) / 1e6

    def to_pillow(self) -> Image.Image:
        """L, LA, RGB or RGBA, with ICC profile and EXIF in `info`."""
        pixels = self.pixels[..., 0] if self.gray else self.pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        image.info.update({key: value for key, value in (("icc_profile", self.icc), ("exif", self.exif)) if value})
        return image


def read(source: Path | bytes, *, name: str = "standard input", max_megapixels: float = MAX_MEGAPIXELS) -> Raster:
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
        raise ImageError(f"{name}: cannot read: {reason(error)}; name an image that is there and that you may read") from error
    if not data:
        raise ImageError(f"{name}: is empty; nothing to purify")
    with _decoding(name), Image.open(io.BytesIO(data), formats=readable()) as image:
        _refuse_size(name, image, max_megapixels)
        image.load()
        deep = _bits_a_sample(image, data)
        # Pillow hands 16-bit grey with alpha over as colour.
        gray = image.format == "PNG" and data[25:26] == b"\x04"
        del data
        return from_pillow(image, deep=deep, gray=gray)


@contextmanager
def header(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """An image file that is open and not decoded yet; errors as of :func:`read`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path}: cannot read: {reason(error)}; name an image that is there and that you may read") from error
    with file, _decoding(str(path)), Image.open(file, formats=readable()) as image:
        _refuse_size(str(path), image, max_megapixels)
        yield image


def _refuse_size(name: str, image: Image.Image, max_megapixels: float) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width}x{height}); nothing to purify")
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, over the limit of {max_megapixels:g}; "
            "raise it with --max-megapixels if you trust the file"
        )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: over Pillow's limit: {reason(error)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or of an unknown format; use PNG, JPEG, WebP, TIFF, BMP, GIF or PPM") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for this machine's memory") from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets.
        raise ImageError(f"{name}: damaged or truncated image: {reason(error)}; get a whole copy") from error


def trust_own_limit() -> None:
    """Let only `max_megapixels` decide what is too large: Pillow's own limit warns at 89 megapixels and ends at 179.

    For programs, not libraries: the setting is Pillow's and holds for the whole process.
    """
    Image.MAX_IMAGE_PIXELS = None


def from_pillow(image: Image.Image, *, deep: int = 8, gray: bool = False) -> Raster:
    """A Pillow image of any mode as 8-bit grey or RGB with alpha.

    Args:
        image: the image; its EXIF orientation is applied.
        deep: bits a sample of the file it came from, to say so when they do not survive.
        gray: whether its colours are known to be greys, whatever the mode.

    Raises:
        ImageError: a mode that has no 8-bit range (32-bit integers or floats outside 0..65535 and 0..1).
    """
    notices: list[str] = []
    source = image.format or ""
    if getattr(image, "n_frames", 1) > 1:
        notices.append(f"only the first of {image.n_frames} frames is purified")  # type: ignore[attr-defined]
    block, turned = exif(image, notices)
    if turned:
        image = ImageOps.exif_transpose(image)
    icc, key = image.info.get("icc_profile"), image.info.get("transparency")
    gray = gray or image.mode in ("1", "L", "LA", "La") or _gray_palette(image)
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if isinstance(key, int):  # The value that is transparent, of the file's own depth.
            alpha = np.where(np.array(image) == key, 0, 255).astype(np.uint8)
        image, key, gray = _eight_bits(image, notices), None, True
    elif deep > 8:
        notices.append(f"{deep}-bit samples are reduced to 8 bits: the code has 12 bits a pixel")
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, icc, notices), None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or key is not None:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = np.array(image.getchannel("A"))
    wanted = "L" if gray else "RGB"
    pixels = np.array(image if image.mode == wanted else image.convert(wanted))
    if icc and icc[16:20] != (b"GRAY" if gray else b"RGB "):
        notices.append("its ICC profile is for another kind of colour and was left out")
        icc = None
    return Raster(pixels[..., None] if gray else pixels, alpha, icc, block, source, notices)


def exif(image: Image.Image, notices: list[str]) -> tuple[bytes | None, bool]:
    """The EXIF block without orientation and what describes the file only, or None; and whether the image must be turned."""
    try:
        # The image's own, which is left as it was. A PNG's own method would decode it to look behind its pixels; read ones are decoded.
        tags = Image.Image.getexif(image)
        orientation = tags.get(_ORIENTATION, 1)
        apart = {tag: tags[tag] for tag in (_STRUCTURE | {_ORIENTATION}) & tags.keys()}
        for tag in apart:
            del tags[tag]
        try:
            return tags.tobytes() if len(tags) else None, orientation != 1
        finally:
            tags.update(apart)
    except Exception:  # Its parsing raises whatever it meets.
        notices.append("its EXIF block is damaged and was left out")
        return None, False


def _gray_palette(image: Image.Image) -> bool:
    """Whether a palette image uses greys only, so that it is purified as grey."""
    if image.mode not in ("P", "PA"):
        return False
    colors = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colors[: len(given)] = given
    used = colors[np.flatnonzero(image.getchannel(0).histogram())]
    return bool((used == used[:, :1]).all())


def _eight_bits(image: Image.Image, notices: list[str]) -> Image.Image:
    """A grey image of 16 or 32 bits as 8 bits, rounded to the nearest level."""
    values = np.array(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if low < 0 or high > full or math.isnan(low + high):
        raise ImageError(
            f"a {image.mode} image with values from {low:g} to {high:g} has no known range; save it with 8 or 16 bits a sample"
        )
    notices.append("16-bit samples are reduced to 8 bits, rounded" if full > 1 else "float samples are reduced to 8 bits, rounded")
    return Image.fromarray(np.floor(values * (255 / full) + 0.5).astype(np.uint8))


def _from_cmyk(image: Image.Image, icc: bytes | None, notices: list[str]) -> Image.Image:
    """CMYK as sRGB, by its own ICC profile where it has a good one."""
    notices.append("CMYK is converted to RGB")
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            notices.append("its ICC profile is damaged and was not used")
    return image.convert("RGB")


def _bits_a_sample(image: Image.Image, data: bytes) -> int:
    """Bits a sample in the file; Pillow hands 16-bit colour over as 8 bits without a word."""
    if image.format == "PNG" and len(data) > 24:
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(258, (8,))))
    if image.format == "PPM":
        fields = data[:64].split()
        return 16 if len(fields) > 3 and fields[3].isdigit() and int(fields[3]) > 255 else 8
    return 8


@cache
def readable() -> list[str]:
    """The formats of `READABLE` that this Pillow was built with."""
    Image.init()
    return sorted(READABLE & Image.OPEN.keys())


@cache
def suffixes(*, writable: bool) -> dict[str, str]:
    """File name endings (".png") to Pillow's format names, of those that can be read, or written."""
    Image.init()
    able = WRITABLE & Image.SAVE.keys() if writable else set(readable())
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in able}


def format_of(path: Path) -> str:
    """The format a file name's ending asks for, as Pillow names it.

    Raises:
        UsageError: no ending, or one that cannot be written.
    """
    name = suffixes(writable=True).get(path.suffix.lower())
    if name is None:
        raise UsageError(f"{path}: cannot write an image with the ending {path.suffix!r}; use .png, .jpg, .webp, .tiff or .bmp")
    return name


def refuse_misfit(image: Raster, format_name: str) -> None:
    """Raise :class:`ImageError` when a format has no place for an image's alpha or size."""
    if image.alpha is not None and format_name not in ALPHA:
        raise ImageError(f"{format_name} has no transparency, which this image has; write .png, .webp or .tiff")
    refuse_size(format_name, *image.pixels.shape[:2])


def refuse_size(format_name: str, height: int, width: int) -> None:
    """Raise :class:`ImageError` when a format has no place for so many pixels a side."""
    if max(height, width) > MAX_SIDE.get(format_name, 2**31 - 1):
        raise ImageError(f"{format_name} holds at most {MAX_SIDE[format_name]} pixels a side, not {width}x{height}; write .png or .tiff")


def encode(raster: Raster, format_name: str, *, quality: int | None = None, strip: bool = False) -> bytes:
    """The bytes of an image file.

    Args:
        raster: what to write.
        format_name: as Pillow names it.
        quality: 1 to 100 for lossy formats, 95 by default.
        strip: leave ICC profile and EXIF out.

    Raises:
        ImageError: the format has no place for this image (its alpha, its size).
    """
    refuse_misfit(raster, format_name)
    options = dict(SAVE_OPTIONS.get(format_name, {}))
    if quality is not None and format_name in ("JPEG", "AVIF"):
        options["quality"] = quality
    image = raster.to_pillow()
    image.info.clear()
    if not strip:
        options |= {key: value for key, value in (("icc_profile", raster.icc), ("exif", raster.exif)) if value}
    try:
        with _buffer(raster.megapixels) as buffer:
            image.save(buffer, format_name, **options)
            buffer.seek(0)
            return buffer.read()
    except (OSError, ValueError, KeyError, struct.error, OverflowError) as error:
        raise ImageError(f"cannot write this image as {format_name}: {reason(error)}; write .png instead") from error


def _buffer(megapixels: float) -> BinaryIO:
    """Where an image is encoded. While Pillow encodes a JPEG into a file, as this is on Linux, other threads go on; into bytes, none."""
    if megapixels < _FILE_MEGAPIXELS or not hasattr(os, "memfd_create"):
        return io.BytesIO()
    return os.fdopen(os.memfd_create("image", os.MFD_CLOEXEC), "w+b")


def write(path: Path, image: Raster, *, quality: int | None = None, strip: bool = False, overwrite: bool = False) -> None:
    """Write an image by its ending, whole or not at all.

    Raises:
        UsageError: the file exists and `overwrite` is false, or its ending is unknown.
        ComdefendError: it cannot be written.
    """
    try:
        data = encode(image, format_of(path), quality=quality, strip=strip)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    with atomic(path, overwrite=overwrite) as file:
        file.write(data)
