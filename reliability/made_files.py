"""Image files of every kind that Pillow writes, and what becomes of them on bad disks and in bad hands."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from comdefend_cli.imaging.reading import prepare_pillow

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F")
SIZES = ((1, 1), (1, 5000), (5000, 1), (97, 89), (2, 3))
#: Formats that Pillow hands to other programs, or that hold no image of their own.
LEFT_OUT = {"EPS", "PDF", "PALM", "HDF5", "GRIB", "BUFR", "WMF"}
ODD_TAGS = {0x010E: "caf\xe9 \u2603", 0x013B: b"\xff\xfe", 0x9C9B: b"t\0i\0", 0xC4A5: b"PrintIM\0", 318: 3, 0xFFFE: (1, 2, 3), 0x8298: ""}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
#: What a writer can be told, beside the mode: by format, the kind of case and the options.
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "PNG": [("shallow", {"bits": bits}) for bits in (1, 2, 4)] + [("transparent", {"transparency": 3})],
    "JPEG": [("interlaced", {"progressive": True}), ("sampled", {"subsampling": "4:2:0"}), ("restarts", {"restart_marker_rows": 1})],
    "GIF": [("interlaced", {"interlace": True}), ("transparent", {"transparency": 3})],
    "WEBP": [("lossless", {"lossless": True}), ("exact", {"lossless": True, "exact": True})],
    "TIFF": [
        ("compressed", {"compression": name}) for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "group4", "tiff_ccitt")
    ]
    + [("large offsets", {"big_tiff": True}), ("interlaced", {"tiffinfo": {278: 1}})],
    "TGA": [("compressed", {"compression": "tga_rle"})],
    "JPEG2000": [("lossy", {"irreversible": True}), ("tiled", {"tile_size": (8, 8)})],
    "DDS": [("compressed", {"pixel_format": name}) for name in ("DXT1", "DXT3", "DXT5", "BC5")],
    "ICO": [("bitmaps", {"bitmap_format": "bmp"})],
}


@dataclass(frozen=True)
class Case:
    """A file: its name, its bytes, and what is odd about it."""

    name: str
    data: bytes
    kind: str


def make_cases(seed: int = 0) -> Iterator[Case]:
    """All cases, the same each time: whole files, then what is done to each."""
    rng = random.Random(seed)
    Image.init()
    prepare_pillow()  # What libtiff says of images that it does not write is of no interest.
    whole = list(_make_whole())
    for number, (format_name, kind, data) in enumerate(whole):
        ending = find_ending(format_name)
        yield Case(f"{number:04}-{kind.replace(' ', '-')}{ending}", data, kind)
        for place, (what, damaged) in enumerate(_damage(data, rng)):
            yield Case(f"{number:04}-{place}-{what.replace(' ', '-')}{ending}", damaged, what)
        other = rng.choice([".png", ".jpg", ".tif", ".gif", ".bmp", ".webp", ".ppm", ".tga"])
        yield Case(f"{number:04}-wrong{other}", data, "wrong ending")


def find_ending(format_name: str) -> str:
    """The first ending of a format's files."""
    return next((ending for ending, name in Image.registered_extensions().items() if name == format_name), f".{format_name.lower()}")


def _make_whole() -> Iterator[tuple[str, str, bytes]]:
    """Format, kind and bytes of each whole file that Pillow writes."""
    for format_name in sorted(Image.SAVE.keys() - LEFT_OUT):
        large = format_name == "ICNS"  # It holds squares of up to 1024 pixels, whatever is written.
        for mode in MODES if not large else ("L", "P", "RGB", "RGBA"):
            yield from _save(format_name, f"mode {mode}", make_image(mode))
        for kind, options in VARIANTS.get(format_name, []):
            for mode in ("P", "RGB", "L", "1"):
                yield from _save(format_name, kind, make_image(mode), **options)
        for size in SIZES if not large else ():
            yield from _save(format_name, "size", make_image("RGB", size))
        if format_name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO", "JPEG2000"):
            yield from _make_described(format_name)
        frames = [make_image("RGB", seed=seed) for seed in range(3)]
        if format_name in Image.SAVE_ALL:
            yield from _save(format_name, "several frames", frames[0], save_all=True, append_images=frames[1:])
    for depth, color in ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)):
        for interlaced in (False, True):
            yield "PNG", "interlaced" if interlaced else "depth", write_png(13, 11, depth, color, interlaced=interlaced)
        if color in (0, 2):
            yield "PNG", "transparent", write_png(13, 11, depth, color, key=bytes(6 if color == 2 else 2))


def _make_described(format_name: str) -> Iterator[tuple[str, str, bytes]]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield from _save(format_name, "orientation", make_image("RGB"), exif=exif.tobytes())
    exif = Image.Exif()
    exif[0x010F], exif[0x8769], exif[0x8825] = "maker", {0x829A: 0.5, 0xA005: {1: "R98"}}, {1: "N"}
    odd = Image.Exif()
    odd.update(ODD_TAGS)
    for block in (exif.tobytes(), _bytes_of(odd), b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", bytes(70)):
        yield from _save(format_name, "EXIF", make_image("RGB"), exif=block)
    for mode, profile in (
        ("RGB", PROFILE),
        ("L", PROFILE),
        ("CMYK", PROFILE),
        ("RGBA", PROFILE),
        ("RGB", b"garbage"),
        ("RGB", PROFILE[:99]),
    ):
        yield from _save(format_name, "ICC profile", make_image(mode), icc_profile=profile)


def _bytes_of(tags: Image.Exif) -> bytes:
    """The block of as many of these tags as can be written."""
    kept = Image.Exif()
    for tag, value in tags.items():
        one = Image.Exif()
        one[tag] = value
        with suppress(Exception):
            one.tobytes()
            kept[tag] = value
    return kept.tobytes()


def _save(format_name: str, kind: str, image: Image.Image, **options: Any) -> Iterator[tuple[str, str, bytes]]:
    """One file, or none where Pillow does not write such an image."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format_name, **options)
    except Exception:
        return
    yield format_name, kind, buffer.getvalue()


def make_image(mode: str, size: tuple[int, int] = (13, 11), seed: int = 0) -> Image.Image:
    """Noise on a gradient, of any mode."""
    rng = np.random.default_rng(seed)
    width, height = size
    ramp = (np.arange(height)[:, None, None] * 7 + np.arange(width)[None, :, None] * 5) % 200
    pixels = (ramp + rng.integers(0, 56, (height, width, 4))).astype(np.uint8)
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    if mode in ("I;16", "I"):
        values = pixels[..., 0].astype(np.uint16) * 256 + pixels[..., 1]
        return Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    color = Image.fromarray(pixels, "RGBA")
    if mode == "LAB":
        return ImageCms.applyTransform(  # type: ignore[return-value]  # Not None, since it is not in place.
            color.convert("RGB"),
            ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
        )
    if mode in ("RGBA", "RGBa", "LA"):
        return color.convert(mode)
    if mode == "PA":
        return color.convert("RGB").quantize(16).convert("PA")
    return color.convert("RGB").quantize(16) if mode == "P" else color.convert("RGB").convert(mode)


def write_png(width: int, height: int, depth: int, color: int, *, interlaced: bool = False, key: bytes = b"") -> bytes:
    """A PNG of noise of a kind that Pillow does not write: any depth, interlaced, with a transparent colour."""
    rng = np.random.default_rng(depth * 8 + color)
    bits = depth * {0: 1, 2: 3, 4: 2, 6: 4}[color]
    passes = (
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    )
    rows = b""
    for left, top, across, down in passes:
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            rows += b"".join(b"\0" + rng.bytes((columns * bits + 7) // 8) for _ in range(lines))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks[1:1] = [(b"tRNS", key)] if key else []
    made = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def _damage(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file cut, with other bytes, and with a header that claims to be huge."""
    yield "truncated", data[: rng.randrange(len(data))]
    yield "truncated", data[: len(data) - rng.randint(1, min(12, len(data)))]
    for count in (1, 3, 8):
        changed = bytearray(data)
        for _ in range(count):
            changed[rng.randrange(min(len(changed), 400) if count == 3 else len(changed))] = rng.randrange(256)
        yield "bytes changed", bytes(changed)
    huge = _claim(data)
    if huge is not None:
        yield "claims to be huge", huge


def _claim(data: bytes) -> bytes | None:
    """The file with its width and height, wherever they stand in its first bytes, as large as their place holds."""
    for layout, side in (("<II", 60000), (">II", 60000), ("<HH", 65535), (">HH", 65535)):
        for width, height in ((13, 11), (11, 13)):
            place = data.find(struct.pack(layout, width, height), 0, 200)
            if place >= 0:
                made = data[:place] + struct.pack(layout, side, side) + data[place + struct.calcsize(layout) :]
                return _mend_png(made) if data.startswith(b"\x89PNG") else made
    return None


def _mend_png(data: bytes) -> bytes:
    """A PNG with the checksum of its changed header."""
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
