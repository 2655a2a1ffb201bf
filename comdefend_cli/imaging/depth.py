"""Bits a sample that a file has, where Pillow reduces them to 8 without a word, and transparency that is lost with them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

#: Bytes of a file that are searched for its depth; boxes of a colour profile may stand before that.
_HEAD = 2**16


def count_bits(image: Image.Image) -> int:
    """Bits a sample in the file of an image that is not decoded yet; 8 where that is not known."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(258, (8,))))
    count = _COUNTS.get(image.format or "")
    return count(image) if count and isinstance(image, ImageFile.ImageFile) and image.tile else 8


def apply_transparent_level(image: Image.Image, depth: int) -> Image.Image:
    """An image whose transparent colour is told in levels of 8 bits, or is its alpha; of most it is.

    A PNG tells it in its own depth, and Pillow hands that over as it is, with pixels of 8 bits (PNG third edition, 11.3.1.1 tRNS).

    Args:
        image: of any kind, not decoded yet.
        depth: by :func:`count_bits`.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or depth == 8 or key is None:
        return image
    if image.mode == "L" and key < 2**depth:  # 2 or 4 bits.
        image = image.copy()
        image.info["transparency"] = key * (255 // (2**depth - 1))
    elif image.mode == "RGB":
        low, high = _decode_low_bytes(image), np.array(image)
        transparent = ((high.astype(np.uint16) << 8 | low) == np.array(key, np.uint16)).all(2)
        image = image.copy()
        del image.info["transparency"]
        image.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return image


def _decode_low_bytes(image: Image.Image) -> np.ndarray:
    """The lower bytes of a PNG of 16-bit colour, of which Pillow keeps the upper ones; read as if the order of bytes were the other."""
    assert isinstance(image, ImageFile.ImageFile) and image.fp is not None
    again = Image.open(image.fp, formats=["PNG"])  # Not closed: the file is the image's.
    assert isinstance(again, ImageFile.ImageFile)
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
    return np.array(again)


def _count_png(image: ImageFile.ImageFile) -> int:
    depth = re.search(r";(\d+)", str(image.tile[0].args))  # As in "RGB;16B".
    return int(depth[1]) if depth else 8


def _count_ppm(image: ImageFile.ImageFile) -> int:
    """By the largest value, which stands behind comments of any length."""
    args = image.tile[0].args
    return max(8, int(args[1]).bit_length()) if isinstance(args, tuple) and len(args) == 2 else 8


def _count_sgi(image: ImageFile.ImageFile) -> int:
    return 8 * _read_head(image)[3]


def _count_jpeg2000(image: ImageFile.ImageFile) -> int:
    """By the SIZ marker of the first code stream (ISO/IEC 15444-1, A.5.1)."""
    head = _read_head(image)
    size = head.find(b"\xff\x4f\xff\x51")
    return (head[size + 42] & 0x7F) + 1 if 0 <= size < len(head) - 42 else 8


def _count_avif(image: ImageFile.ImageFile) -> int:
    """By the first configuration of AV1 (AV1 in ISOBMFF, 2.3.3)."""
    head = _read_head(image)
    box = head.find(b"av1C")
    flags = head[box + 6] if 0 <= box < len(head) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _read_head(image: ImageFile.ImageFile) -> bytes:
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(_HEAD)
    image.fp.seek(place)
    return bytes(head)


_COUNTS: dict[str, Callable[[ImageFile.ImageFile], int]] = {
    "PNG": _count_png,
    "PPM": _count_ppm,
    "SGI": _count_sgi,
    "JPEG2000": _count_jpeg2000,
    "AVIF": _count_avif,
}
