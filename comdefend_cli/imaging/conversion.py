"""Pillow images of any mode as 8-bit grey or RGB with alpha."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from comdefend_cli.errors import ImageError
from comdefend_cli.imaging.depth import apply_transparent_level, count_bits
from comdefend_cli.imaging.metadata import read_exif, read_iptc, read_xmp
from comdefend_cli.imaging.raster import Raster


def from_pillow(image: Image.Image) -> Raster:
    """A Pillow image of any mode, decoded or not, as 8-bit grey or RGB with alpha; its EXIF orientation is applied.

    Raises:
        ImageError: a mode that has no 8-bit range (32-bit integers or floats outside 0..65535 and 0..1).
    """
    notices: list[str] = []
    source = image.format or ""
    tell_frames(image, notices)
    depth, gray = count_bits(image), _is_gray(image)
    image = apply_transparent_level(image, depth)
    image.load()  # What a file says about its image may stand behind the pixels; which mode those of an icon have, it says only now.
    gray = gray or _is_gray(image)
    exif, orientation = read_exif(image, notices)
    xmp, iptc = read_xmp(image, notices), read_iptc(image, notices)
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    icc, key = image.info.get("icc_profile"), image.info.get("transparency")
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if isinstance(key, int):  # The value that is transparent, of the file's own depth.
            alpha = np.where(np.array(image) == key, 0, 255).astype(np.uint8)
        image, key, gray = _eight_bits(image, notices), None, True
    elif depth > 8:
        notices.append(f"{depth}-bit samples are reduced to 8 bits: the code has 12 bits a pixel")
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, icc, notices), None
    if key is not None or has_alpha(image):
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = np.array(image.getchannel("A"))
    wanted = "L" if gray else "RGB"
    pixels = np.array(image if image.mode == wanted else image.convert(wanted))
    if icc and icc[16:20] != (b"GRAY" if gray else b"RGB "):
        notices.append("its ICC profile is for another kind of colour and was left out")
        icc = None
    return Raster(pixels[..., None] if gray else pixels, alpha, icc, exif, xmp, iptc, source, notices)


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has transparency, as samples, in its palette or as a colour; Pillow takes a palette for granted."""
    return not (image.mode == "P" and image.palette is None and "transparency" not in image.info) and image.has_transparency_data


def tell_frames(image: Image.Image, notices: list[str]) -> None:
    """Say where an image has more frames than the one that is purified; it may have to be gone through for that, and be damaged there."""
    place = image.tell()
    try:
        count = getattr(image, "n_frames", 1)
    except Exception:  # Its parsing raises whatever it meets.
        if image.tell() != place:
            image.seek(place)
        notices.append("only its first frame is purified; those behind it are damaged")
        return
    if count > 1:
        notices.append(f"only the first of {count} frames is purified")


def _is_gray(image: Image.Image) -> bool:
    """Whether an image uses greys only by its mode, its palette or its file, so that it is purified as grey."""
    if image.mode in ("1", "L", "LA", "La"):
        return True
    if image.mode not in ("P", "PA"):
        # Pillow hands 16-bit grey with alpha over as colour.
        return bool(image.format == "PNG" and isinstance(image, ImageFile.ImageFile) and image.tile and image.tile[0].args == "LA;16B")
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
