"""Depths other than 8 bits: a notice where they are reduced, and transparency that a file tells in its own depth."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import small_model
from formats import png
from PIL import Image

from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.inference.purifier import Purifier

NOTICE = "{}-bit samples are reduced to 8 bits: the code has 12 bits a pixel"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_level_of_shallow_grey(depth: int) -> None:
    """Of grey of each depth, the one level that the file names is transparent, whether it is read as a file or comes from Pillow."""
    levels = 2**depth
    samples = np.arange(levels, dtype=np.uint8)
    bits = np.unpackbits(samples[:, None], axis=1)[:, 8 - depth :]
    row = b"\0" + np.packbits(bits).tobytes()
    for key in range(levels):
        data = png(levels, 1, row, depth=depth, color=0, key=struct.pack(">H", key))
        with Image.open(io.BytesIO(data)) as image:
            for raster in (read_image(data), from_pillow(image)):
                assert raster.pixels.ravel().tolist() == [round(255 * level / (levels - 1)) for level in range(levels)]
                assert raster.alpha is not None and (raster.alpha[0] == 0).tolist() == (samples == key).tolist()
                assert raster.notices == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interlace", [False, True])
def test_a_transparent_color_of_16_bits(channels: int, interlace: bool) -> None:
    """Only the pixels with exactly that colour are transparent, not their neighbours within the same 8 bits; also in several parts."""
    pyvips = pytest.importorskip("pyvips")
    samples = np.random.default_rng(0).integers(0, 65536, (150, 200, channels)).astype(np.uint16)
    key = samples[70, 50].copy()
    samples[3, 4], samples[5, 6] = key, key ^ 1
    samples[7, 8] = np.roll(key, 1)
    image = pyvips.Image.new_from_array(samples).copy(interpretation="grey16" if channels == 1 else "rgb16")
    data = image.pngsave_buffer(interlace=interlace)
    assert data.count(b"IDAT") > 1 and data[28] == interlace
    chunk = b"tRNS" + key.astype(">u2").tobytes()
    place = data.index(b"IDAT") - 4
    data = data[:place] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[place:]
    raster = read_image(data)
    assert raster.alpha is not None
    assert np.array_equal(raster.alpha == 0, (samples == key).all(2))
    reduced = np.round(samples / 257) if channels == 1 else samples >> 8
    assert np.array_equal(raster.pixels, reduced)
    assert len(raster.notices) == 1 and "16-bit samples are reduced to 8 bits" in raster.notices[0]


def test_a_transparent_level_survives_the_purifier() -> None:
    """An image that a caller opened with Pillow comes back with the transparency of its file."""
    data = png(4, 1, b"\0\x1b", depth=2, color=0, key=struct.pack(">H", 2))
    purified = Purifier(small_model())(Image.open(io.BytesIO(data)))
    assert purified.getchannel("A").tobytes() == b"\xff\xff\0\xff"


COMMENT = b"# " + b"made by a scanner, " * 10 + b"\n"


@pytest.mark.parametrize("comment", [b"", COMMENT, COMMENT * 500])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
@pytest.mark.parametrize("largest", [15, 255, 1023, 65535])
def test_deep_ppm_is_said(kind: bytes, largest: int, comment: bytes) -> None:
    """A PGM or PPM of more than 8 bits, binary or plain, is noticed, whatever comments its header has; one of fewer is not."""
    channels = 3 if kind in (b"P3", b"P6") else 1
    values = [largest, 0, largest] * channels
    size = ">u2" if largest > 255 else "u1"
    body = " ".join(map(str, values)).encode() if kind in (b"P2", b"P3") else np.array(values, size).tobytes()
    raster = read_image(kind + b"\n" + comment + b"3 " + comment + b"1\n" + b"%d\n" % largest + body)
    assert raster.pixels.ravel().tolist() == [255 * (value > 0) for value in values]
    assert bool(raster.notices) == (largest > 255)
    if channels == 3 and largest > 255:
        assert raster.notices == [NOTICE.format(largest.bit_length())]


def test_other_deep_formats_are_said(astronaut: np.ndarray) -> None:
    """SGI of 16 bits, AVIF of 10 and 12 and JPEG 2000 of 12 bits are noticed; of 8 bits they are not."""
    pyvips = pytest.importorskip("pyvips")
    image = Image.fromarray(astronaut[:16, :24])
    vips = pyvips.Image.new_from_array(astronaut[:16, :24].astype(np.uint16) * 257).copy(interpretation="rgb16")
    files = {}
    for bits in (1, 2):
        image.save(buffer := io.BytesIO(), "SGI", bpc=bits)
        files["SGI", 8 * bits] = buffer.getvalue()
    for bits in (8, 10, 12):
        files["AVIF", bits] = vips.heifsave_buffer(bitdepth=bits, compression="av1")
    for bare in (True, False):
        image.save(buffer := io.BytesIO(), "JPEG2000", no_jp2=bare)
        data = buffer.getvalue()
        files["JPEG2000", 8] = data
        size = data.index(b"\xff\x4f\xff\x51") + 42  # Three bits a sample of which Pillow's writer makes 8, each with two more bytes.
        deep = data[:size] + b"".join(b"\x0b" + data[size + 3 * i + 1 : size + 3 * i + 3] for i in range(3)) + data[size + 9 :]
        files["JPEG2000", 12, bare] = deep
    for (kind, bits, *_), data in files.items():
        raster = read_image(data)
        assert raster.source == kind
        assert raster.notices == ([NOTICE.format(bits)] if bits > 8 else [])
