"""Files of which all pixels are there although Pillow refuses them, and what is said of those of which they are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from formats import png, png_claiming
from PIL import Image

from comdefend_cli.errors import ImageError
from comdefend_cli.imaging.reading import prepare_pillow, read_image

ROWS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
WHOLE = png(5, 4, b"".join(b"\0" + row.tobytes() for row in ROWS))


def chunk(kind: bytes, content: bytes, *, damaged: bool = False) -> bytes:
    """Of a PNG, with the checksum of other bytes where it is to be damaged."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ damaged)


def with_chunk(made: bytes) -> bytes:
    """The PNG with a chunk before its pixels."""
    place = WHOLE.index(b"IDAT") - 4
    return WHOLE[:place] + made + WHOLE[place:]


STILL = with_chunk(chunk(b"acTL", struct.pack(">II", 2, 0)))
RECOVERED = {
    "more pixels are announced": (WHOLE[:-12] + b"\0\0\x76\x4eIDAT", "end is missing"),
    "frames without control": (STILL[:-12] + chunk(b"fdAT", b"\0\0\0\0" + bytes(9)) + STILL[-12:], "animation is damaged"),
    "a damaged text": (with_chunk(chunk(b"tEXt", b"Title\0a woman", damaged=True)), "beside its pixels"),
    "a text too long": (with_chunk(chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(2**21)))), "beside its pixels"),
}


@pytest.mark.parametrize("what", RECOVERED)
def test_a_png_whose_pixels_are_there_is_purified(what: str) -> None:
    """Whatever is wrong beside the pixels, which keeps Pillow from reading them, they are read, and it is said."""
    data, words = RECOVERED[what]
    image = read_image(data)
    assert np.array_equal(image.pixels, ROWS)
    assert words in " ".join(image.notices)
    with pytest.raises((OSError, SyntaxError, ValueError)), Image.open(io.BytesIO(data)) as opened:
        opened.load()


@pytest.mark.parametrize("data", [WHOLE[:-40], with_chunk(chunk(b"tRNS", bytes(6), damaged=True)), WHOLE[:20] + b"\xff" + WHOLE[21:]])
def test_a_png_that_misses_pixels_or_alpha_is_not_guessed(data: bytes) -> None:
    """A cut stream, a damaged transparent colour, a damaged size: one line, which says to get a whole copy."""
    with pytest.raises(ImageError, match=r"get a whole copy|unknown format"):
        read_image(data)


def bmp(values: np.ndarray, masks: tuple[int, ...], *, top_down: bool = False) -> bytes:
    """A BMP with masks; `values` is (H, W) of 16 or 32 bits."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    rows = b"".join(row.tobytes() + bytes(-row.nbytes % 4) for row in (values if top_down else values[::-1]))
    size = 40 if len(masks) == 3 else 56
    head = struct.pack("<IiiHHIIiiII", size, width, -height if top_down else height, 1, bits, 3, len(rows), 0, 0, 0, 0)
    start = 14 + 40 + 4 * len(masks)
    return struct.pack("<2sIII", b"BM", start + len(rows), 0, start) + head + struct.pack(f"<{len(masks)}I", *masks) + rows


@pytest.mark.parametrize(
    "masks", [(0xF00, 0xF0, 0xF, 0xF000), (0xF00, 0xF0, 0xF), (0x3FF00000, 0xFFC00, 0x3FF), (0xFF, 0xFF00, 0xFF0000, 0x3F000000)]
)
@pytest.mark.parametrize("top_down", [False, True])
def test_a_bmp_with_masks_of_any_kind(masks: tuple[int, ...], top_down: bool) -> None:
    """Samples of any width are brought to 8 bits, rounded, alpha too; a file that is cut is refused."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**16 if max(masks) < 2**16 else 2**32, (5, 7)).astype(np.uint16 if max(masks) < 2**16 else np.uint32)
    data = bmp(values, masks, top_down=top_down)
    image = read_image(data)
    levels = [np.round((values & mask) / mask * 255) for mask in masks]
    assert np.array_equal(image.pixels, np.stack(levels[:3], 2))
    assert (image.alpha is not None) == (len(masks) == 4)
    if image.alpha is not None:
        assert np.array_equal(image.alpha, levels[3])
    with pytest.raises(ImageError, match=r"not supported|get a whole copy"):
        read_image(data[:-1])


def test_a_bmp_that_claims_too_many_colours() -> None:
    """Those that its pixels cannot name are left out."""
    palette = Image.fromarray(ROWS[..., 0], "L").convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[46:50] = struct.pack("<I", 300)
    assert np.array_equal(read_image(bytes(data)).pixels[..., 0], ROWS[..., 0])


def test_a_whole_copy_is_asked_for_where_one_is_missing() -> None:
    """Of a kind that is not supported, no other copy would help, and another format is asked for."""
    two_bits = bytearray(bmp(np.zeros((2, 2), np.uint16), (0xF00, 0xF0, 0xF)))
    two_bits[28:34] = struct.pack("<HI", 2, 0)
    with pytest.raises(ImageError, match=r"not supported.*save it as PNG") as caught:
        read_image(bytes(two_bits))
    assert "whole copy" not in str(caught.value)


def test_images_within_images_have_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon whose header tells of 128x128 may hold an image of any size, which is not decoded either."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    prepare_pillow(4)
    inner = png_claiming(3000, 3000)
    entry = b"ic07" + struct.pack(">I", 8 + len(inner)) + inner
    with pytest.raises(ImageError, match=r"9 megapixels, over the limit of 4; raise it with --max-megapixels"):
        read_image(b"icns" + struct.pack(">I", 8 + len(entry)) + entry, max_megapixels=4)


def test_decoders_speak_in_errors_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What libtiff and Pillow would say of a damaged file by themselves is not heard beside the one line of error."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    prepare_pillow()
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "TIFF", compression="tiff_lzw")
    data = buffer.getvalue()
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    for damaged in (data.replace(samples, samples[:-2] + b"\xff\xff"), data[:8] + bytes(100) + data[108:]):
        with pytest.raises(ImageError):
            read_image(damaged)
    assert capfd.readouterr() == ("", "")


def test_damaged_frames_leave_the_first_one() -> None:
    """A Photoshop file whose layers cannot be counted still has its whole image."""
    layers = struct.pack(">IIh", 6, 2, 9)
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 2, 3, 8, 1) + bytes(8)
    data = head + layers + struct.pack(">H", 0) + bytes(range(6))
    image = read_image(data)
    assert image.pixels.ravel().tolist() == list(range(6))
    assert any("damaged" in text for text in image.notices)
