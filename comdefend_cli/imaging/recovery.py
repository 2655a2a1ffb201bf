"""Files that Pillow refuses although all of their pixels are there: what a file of another making would hold, for Pillow to read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

_PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks of a PNG that tell of an animation, whose first frame or still image stands in the others (PNG third edition, 11.3.6).
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
#: Chunks without which the pixels would be others; the rest describes the image.
_NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"tRNS"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
#: Bytes of a BMP's headers before its masks or palette, and the compressions that say where masks stand in front of the pixels.
_BMP_HEADERS, _BITFIELDS = 54, (3, 6)


def can_recover(data: bytes) -> bool:
    """Whether a file is of a format that :func:`recover` knows."""
    return data.startswith((_PNG, b"BM"))


def recover(data: bytes) -> tuple[bytes, str] | None:
    """A file of the same pixels that Pillow may read, and what was wrong with this one; or None where there is nothing to be done.

    The pixels of what comes back may still not be whole, which Pillow says then.
    """
    try:
        return _recover_png(data) if data.startswith(_PNG) else _recover_bmp(data)
    except (struct.error, ValueError, MemoryError):
        return None


def _recover_png(data: bytes) -> tuple[bytes, str] | None:
    """Without an animation, damaged chunks and texts beside the pixels, and with an end."""
    faults: list[str] = []
    kept = []
    for kind, content, state in _iterate_chunks(data):
        if kind in _ANIMATION:
            faults.append("its animation is damaged, so that only its still image is purified")
        elif state == "damaged" and kind in _NEEDED:
            return None
        elif (state == "whole" and kind not in _TEXTS) or kind == b"IDAT":
            kept.append((kind, content))
        elif state != "cut":
            faults.append("parts of it that stand beside its pixels are damaged and were left out")
    if not _ends_whole(data):
        faults.append("its end is missing; its pixels are whole")
    if not faults:
        return None
    parts = (struct.pack(">I", len(content)) + kind + content + _checksum(kind, content) for kind, content in [*kept, (b"IEND", b"")])
    return _PNG + b"".join(parts), "; ".join(dict.fromkeys(faults))


def _iterate_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, str]]:
    """Kind and content of each chunk up to the end, and whether it is "whole", "damaged" by its checksum, or "cut" with the file."""
    place = len(_PNG)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        content, check = data[place + 8 : place + 8 + size], data[place + 8 + size : place + 12 + size]
        if kind == b"IEND":
            return
        yield kind, content, "cut" if len(check) < 4 else "whole" if check == _checksum(kind, content) else "damaged"
        place += 12 + size


def _ends_whole(data: bytes) -> bool:
    return b"\0\0\0\0IEND\xae\x42\x60\x82" in data[-64:]


def _checksum(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _recover_bmp(data: bytes) -> tuple[bytes, str] | None:
    """With eight bits a sample instead of other masks, and without colours beyond those that pixels can name."""
    start, header, width, height, _, bits, compression = struct.unpack_from("<I I i i H H I", data, 10)
    if header < 40:
        return None
    if bits in (16, 32) and compression in _BITFIELDS and width > 0 and height:
        masks = struct.unpack_from("<4I", data, _BMP_HEADERS)
        masked = masks if header >= 56 or compression == 6 else (*masks[:3], 0)
        stride = (width * bits // 8 + 3) // 4 * 4
        rows = np.frombuffer(data, np.uint8, stride * abs(height), start).reshape(abs(height), stride)
        values = np.ascontiguousarray(rows[:, : width * bits // 8]).view(f"<u{bits // 8}")
        return _write_bmp(values, masked, height), "its samples of other than 8 bits are brought to 8"
    (colors,) = struct.unpack_from("<I", data, 46)
    if bits in (1, 4, 8) and colors > 2**bits:
        return data[:46] + struct.pack("<I", 2**bits) + data[50:], "it claims more colours than its pixels can name"
    return None


def _write_bmp(values: np.ndarray, masks: tuple[int, ...], height: int) -> bytes:
    """A BMP of 32 bits a pixel whose samples are taken out of `values` (H, W) by `masks` of red, green, blue and alpha."""
    samples = np.full((*values.shape, 4), 255, np.uint8)  # Blue, green, red, alpha.
    for place, mask in zip((2, 1, 0, 3), masks, strict=True):
        if mask:
            most = mask // (mask & -mask)
            if most & (most + 1):
                raise ValueError("the bits of a sample do not stand together")
            levels = (values.astype(np.uint64) & mask) // (mask & -mask)
            samples[..., place] = (levels * 255 + most // 2) // most
        elif place < 3:
            samples[..., place] = 0
    given = (0xFF0000, 0xFF00, 0xFF, 0xFF000000 if masks[3] else 0)
    size = samples.nbytes
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 122 + size, 0, 122, 108, values.shape[1], height, 1, 32, 3, size, 2835, 2835, 0, 0)
    return head + struct.pack("<4I", *given) + b"BGRs" + bytes(48) + samples.tobytes()
