"""What a file says about its image, beside its pixels: EXIF, XMP (ISO 16684-1) and IPTC (IIM 4), from one format into another."""

from __future__ import annotations

import re
import struct
from typing import Any

from PIL import Image, PngImagePlugin, PsdImagePlugin, TiffImagePlugin

from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.tiff_blocks import split_blocks

_ORIENTATION = 0x0112
#: TIFF's tags for XMP, IPTC and Photoshop's blocks, and the numbers of those blocks that hold IPTC and XMP.
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG = 700, 33723, 34377
_IPTC_BLOCK, _XMP_BLOCK = 0x0404, 0x0424
#: What PNG files call XMP, officially, and IPTC, by custom: in hexadecimal, as ImageMagick began it.
_PNG_XMP, _PNG_IPTC = "XML:com.adobe.xmp", "Raw profile type iptc"
#: An image is turned upright, so nothing may tell of an orientation any more.
_XMP_ORIENTATION = re.compile(rb"""\s?\btiff:Orientation\s*=\s*(["'])[^"']*\1|<tiff:Orientation>[^<]*</tiff:Orientation>""")
#: The bytes of XMP and of IPTC that one marker of a JPEG file holds beside what stands before them.
_JPEG_XMP, _JPEG_IPTC = 65504, 65506
#: Tags of a TIFF file that are not about the image but about how this file holds it (TIFF 6.0, sections 8 to 22): written into
#: another file they would contradict it. And profile, XMP, IPTC and Photoshop blocks, which are not EXIF.
_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293, 301),
    *(317, *range(320, 344), 347, *range(512, 522), 529, 530, 531, 532, *range(32995, 32999)),
    *(_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG, 34675, 37724),
}


def read_exif(image: Image.Image, notices: list[str]) -> tuple[bytes | None, int]:
    """The EXIF block without orientation and what describes the file only, or None; and the orientation, 1 where it is upright."""
    try:
        # The image's own, which is left as it was. A PNG's own method would decode it to look behind its pixels; read ones are decoded.
        tags = Image.Image.getexif(image)
        orientation = tags.get(_ORIENTATION, 1)
        apart = {tag: tags[tag] for tag in (_STRUCTURE | {_ORIENTATION}) & tags.keys()}
        for tag in apart:
            del tags[tag]
        big, tags.bigtiff = tags.bigtiff, False  # Nothing reads a block with offsets of 64 bits.
        try:
            return tags.tobytes() if len(tags) else None, int(orientation)
        finally:
            tags.bigtiff = big
            tags.update(apart)
    except Exception:  # Its parsing raises whatever it meets.
        notices.append("its EXIF block is damaged and was left out")
        return None, 1


def read_xmp(image: Image.Image, notices: list[str]) -> bytes | None:
    """The XMP packet of an image that is decoded, without orientation, in UTF-8; or None."""
    xmp = image.info.get("xmp") or _find_psd_resource(image, _XMP_BLOCK)
    if xmp is None and _PNG_XMP in image.info:  # Some programs, libvips among them, write it as a plain text.
        xmp = str(image.info[_PNG_XMP]).encode("latin-1", "replace")
    if not isinstance(xmp, bytes) or not xmp.rstrip(b"\0"):
        return None
    xmp = xmp.rstrip(b"\0")
    try:
        xmp.decode()
    except UnicodeDecodeError:
        notices.append("its XMP packet is damaged and was left out")
        return None
    return _XMP_ORIENTATION.sub(b"", xmp)


def read_iptc(image: Image.Image, notices: list[str]) -> bytes | None:
    """The IPTC records of an image that is decoded, or None."""
    try:
        iptc = _find_iptc(image)
    except Exception:  # Its parsing raises whatever it meets.
        iptc = b"damaged"
    if not iptc:
        return None
    if not iptc.startswith(b"\x1c"):
        notices.append("its IPTC block is damaged and was left out")
        return None
    return iptc


def _find_iptc(image: Image.Image) -> bytes | None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # As Pillow's own reader of IPTC does it: often it is written as numbers of 32 bits, of which Pillow keeps the first.
        records: bytes | None = image.tag_v2._tagdata.get(_IPTC_TAG)
        return records or _find_in_blocks(image.tag_v2.get(_PHOTOSHOP_TAG, b""))
    if "photoshop" in image.info:  # Of a JPEG.
        blocks: dict[int, Any] = image.info["photoshop"]
        return blocks.get(_IPTC_BLOCK)
    if _PNG_IPTC in image.info:
        return _find_in_blocks(bytes.fromhex("".join(image.info[_PNG_IPTC].split("\n")[3:])))
    return _find_psd_resource(image, _IPTC_BLOCK)


def _find_psd_resource(image: Image.Image, number: int) -> bytes | None:
    resources = image.resources if isinstance(image, PsdImagePlugin.PsdImageFile) else []
    return next((data for each, _, data in resources if each == number), None)


def _find_in_blocks(data: bytes) -> bytes | None:
    """The IPTC records among Photoshop's blocks: each "8BIM", number, name, length, content, the last three of even length."""
    place = 0
    while data.startswith(b"8BIM", place):
        number, name = struct.unpack_from(">HB", data, place + 4)
        start = place + 6 + (name + 2) // 2 * 2
        (size,) = struct.unpack_from(">I", data, start)
        if number == _IPTC_BLOCK:
            return data[start + 4 : start + 4 + size]
        place = start + 4 + (size + 1) // 2 * 2
    return None


def choose_save_options(raster: Raster, format_name: str) -> dict[str, Any]:
    """What Pillow's writer of a format is to be given so that the file says about its image what the last one said.

    ICC profile and EXIF go into each format that has a place for them; XMP into PNG, JPEG, WebP, AVIF and TIFF, IPTC into PNG, JPEG and
    TIFF; of a JPEG, packets of more than 64 kB do not.
    """
    options: dict[str, Any] = {key: value for key, value in (("icc_profile", raster.icc), ("exif", raster.exif)) if value}
    xmp, iptc = raster.xmp, raster.iptc
    if format_name in ("WEBP", "AVIF") and xmp:
        options["xmp"] = xmp
    elif format_name == "JPEG":
        if xmp and len(xmp) <= _JPEG_XMP:
            options["xmp"] = xmp
        if iptc and len(iptc) <= _JPEG_IPTC:
            blocks = b"Photoshop 3.0\0" + _make_block(iptc)
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(blocks) + 2) + blocks
    elif format_name == "PNG" and (xmp or iptc):
        texts = PngImagePlugin.PngInfo()
        if xmp:
            texts.add_itxt(_PNG_XMP, xmp.decode())
        if iptc:
            blocks = _make_block(iptc)
            lines = re.findall(".{1,72}", blocks.hex())
            texts.add_text(_PNG_IPTC, "\n".join(["", "iptc", f"{len(blocks):8}", *lines, ""]))
        options["pnginfo"] = texts
    elif format_name == "TIFF" and (raster.exif or xmp or iptc):
        tags, _ = split_blocks(raster.exif or b"")
        tags.update({tag: value for tag, value in ((_XMP_TAG, xmp), (_IPTC_TAG, iptc)) if value})
        options["exif"] = tags
    return options


def _make_block(iptc: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", _IPTC_BLOCK, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
