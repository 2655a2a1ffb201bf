"""Reading at its edges: what cannot be opened, what memory cannot hold, and what of a damaged file can be recovered."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from comdefend_cli.errors import ImageError
from comdefend_cli.imaging import reading
from comdefend_cli.imaging.metadata import choose_save_options
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import open_image, read_image, tells_alpha
from comdefend_cli.imaging.recovery import recover
from comdefend_cli.imaging.writing import encode_image

PIXELS = np.arange(36, dtype=np.uint8).reshape(4, 3, 3)


def chunk(kind: bytes, content: bytes, check: int | None = None) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) if check is None else check)


def png(*more: bytes, damaged: bool = False, end: bytes = chunk(b"IEND", b"")) -> bytes:
    """A grey PNG of 2x1 with more chunks before its pixels, whose checksum may be wrong."""
    head, pixels = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0)), zlib.compress(b"\0\x07\x09")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels, 1 if damaged else None) + end


def test_a_file_is_opened_where_it_is(tmp_path: Path) -> None:
    """Without decoding it; its header tells of transparency, and that of no image of none."""
    path = tmp_path / "x.png"
    for mode in ("RGB", "RGBA"):
        Image.fromarray(PIXELS).convert(mode).save(path)
        with open_image(path) as image:
            assert (image.size, image.mode) == ((3, 4), mode)
        assert tells_alpha(io.BytesIO(path.read_bytes())) is (mode == "RGBA")
    assert tells_alpha(io.BytesIO(b"no image")) is False
    with pytest.raises(ImageError, match="cannot read"), open_image(tmp_path / "absent.png"):
        pass


def test_errors_name_the_source_and_what_was_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came without a name is standard input; memory that was lacking is no damage."""
    with pytest.raises(ImageError, match=r"^standard input: not an image"):
        read_image(b"no image")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "from_pillow", fail)
    with pytest.raises(ImageError, match=r"^standard input: too large for this machine's memory$"):
        read_image(png())


def test_of_a_png_what_its_pixels_need_must_be_whole() -> None:
    """Texts, whole or damaged, and the end are done without; damaged pixels are not, and a whole file needs nothing."""
    assert recover(png()) is None and recover(png(damaged=True)) is None
    missing, beside = "its end is missing; its pixels are whole", "parts of it that stand beside its pixels are damaged and were left out"
    text = chunk(b"tEXt", b"Title\0x")
    for data, words in (
        (png(end=b""), missing),
        (png(end=text[:-2]), missing),
        (png(text), beside),
        (png(chunk(b"gAMA", b"\0\0\0\1", 1)), beside),
        (png(text, text, end=b""), f"{beside}; {missing}"),
    ):
        found = recover(data)
        assert found == (png(), words)
        assert np.array_equal(np.array(Image.open(io.BytesIO(found[0]))), [[7, 9]])


def test_of_a_bmp_masks_and_colours_are_brought_to_what_pillow_reads() -> None:
    """Pixels of 16 bits by their masks, also one alone; a palette of as many colours as its pixels can name is whole."""
    masks = struct.pack("<4I", 0xF00, 0xF0, 0xF, 0)
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 74, 0, 0, 70, 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    found = recover(header + masks + struct.pack("<HH", 0xF80, 0))
    assert found is not None and np.array(Image.open(io.BytesIO(found[0])).convert("RGB")).tolist() == [[[255, 136, 0]]]
    stream = io.BytesIO()
    Image.fromarray(PIXELS[..., 0]).convert("P").save(stream, "BMP")
    data = bytearray(stream.getvalue())
    assert struct.unpack_from("<I", data, 46) == (256,) and recover(bytes(data)) is None
    struct.pack_into("<I", data, 46, 257)
    claimed = recover(bytes(data))
    assert claimed is not None and claimed[1] == "it claims more colours than its pixels can name"


def test_a_tiff_is_given_tags_only_where_there_are_some() -> None:
    """No EXIF block of nothing; and other formats get the block that was read, as it is."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    block = exif.tobytes()
    assert choose_save_options(Raster(PIXELS), "TIFF") == {} == choose_save_options(Raster(PIXELS), "BMP")
    assert choose_save_options(Raster(PIXELS, exif=block), "WEBP") == {"exif": block}
    assert dict(choose_save_options(Raster(PIXELS, exif=block, xmp=b"<x/>"), "TIFF")["exif"]) == {0x010F: "maker", 700: b"<x/>"}


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [None, 20])
def test_alpha_in_avif_is_whole(channels: int, quality: int | None) -> None:
    """Bit for bit, however much the colours are compressed."""
    noise = np.random.default_rng(0).integers(0, 256, (23, 31, 4), np.uint8)
    made = encode_image(Raster(noise[..., :channels], noise[..., 3]), "AVIF", quality=quality)
    read = read_image(made)
    assert read.alpha is not None and np.array_equal(read.alpha, noise[..., 3])
