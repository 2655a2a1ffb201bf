"""EXIF's own blocks of tags in TIFF files: Pillow's writer of compressed ones has no place for them, and ends in an error."""

from __future__ import annotations

import struct

from PIL import Image, TiffImagePlugin

#: Tags of the blocks of the camera and of the place, and, within the former, of compatibility (Exif 3.0, 4.6.3).
CAMERA, PLACE, COMPATIBILITY = 0x8769, 0x8825, 0xA005


def split_blocks(exif: bytes) -> tuple[Image.Exif, dict[int, dict[int, object]]]:
    """The tags of an EXIF block that are none of its blocks; and these."""
    tags = Image.Exif()
    tags.load(exif)
    blocks = {tag: dict(tags.get_ifd(tag)) for tag in (CAMERA, PLACE) if tag in tags}
    if COMPATIBILITY in blocks.get(CAMERA, {}):
        blocks[CAMERA][COMPATIBILITY] = dict(tags.get_ifd(COMPATIBILITY))
    alone = Image.Exif()
    alone.update({tag: value for tag, value in tags.items() if tag not in blocks})
    return alone, {tag: block for tag, block in blocks.items() if block}


def append_blocks(data: bytes, blocks: dict[int, dict[int, object]]) -> bytes:
    """A TIFF file as Pillow writes it, of one image, with blocks of tags: behind it, where its directory goes too."""
    if not blocks:
        return data
    order = "<" if data[:2] == b"II" else ">"
    (place,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, place)
    entries = [data[start : start + 12] for start in range(place + 2, place + 2 + 12 * count, 12)]
    made = bytearray(data)
    for tag, block in blocks.items():
        made += bytes(len(made) % 2)
        entries.append(struct.pack(f"{order}HHII", tag, 4, 1, len(made)))
        directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=data[:8], group=tag)
        directory.update(block)
        made += directory.tobytes(len(made))
    made += bytes(len(made) % 2)
    struct.pack_into(f"{order}I", made, 4, len(made))
    entries.sort(key=lambda entry: struct.unpack(f"{order}H", entry[:2]))
    return bytes(made + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4))
