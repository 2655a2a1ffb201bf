"""Files to 8-bit images and back: what is kept, what is said, what is refused."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats import png, png_claiming
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from comdefend_cli.errors import ComdefendError, ImageError, UsageError
from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.formats import ALPHA, LOSSY, WRITABLE, find_format, list_suffixes, refuse_misfit
from comdefend_cli.imaging.limits import MAX_SIDE
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import read_image, read_size
from comdefend_cli.imaging.writing import encode_image, write_image

ORIENTATION = 0x0112


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_dropped(astronaut: np.ndarray, orientation: int) -> None:
    """All eight orientations come out upright, and other EXIF stays."""
    upright = Image.fromarray(astronaut[:30, :50])
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "maker"
    image = read_image(encoded(stored, "PNG", exif=exif.tobytes()))
    assert np.array_equal(image.pixels, astronaut[:30, :50])
    kept = Image.open(io.BytesIO(encode_image(image, "PNG"))).getexif()
    assert kept.get(0x010F) == "maker"
    assert ORIENTATION not in kept


def test_profile_and_exif_are_carried_and_stripped(astronaut: np.ndarray) -> None:
    """ICC profile and EXIF survive in PNG, JPEG, WebP and TIFF, and `strip` leaves them out."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "maker"
    image = read_image(encoded(Image.fromarray(astronaut[:20, :20]), "PNG", icc_profile=profile, exif=exif.tobytes()))
    for format_name in ("PNG", "JPEG", "WEBP", "TIFF"):
        kept = Image.open(io.BytesIO(encode_image(image, format_name)))
        assert kept.info["icc_profile"] == profile
        assert kept.getexif().get(0x010F) == "maker"
        stripped = Image.open(io.BytesIO(encode_image(image, format_name, strip=True)))
        assert "icc_profile" not in stripped.info
        assert 0x010F not in stripped.getexif()


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_lossless_formats_bring_back_every_value(astronaut: np.ndarray, mode: str, format_name: str) -> None:
    """What is written in a format that is not listed as lossy is what is read back, alpha included."""
    image = Image.fromarray(astronaut[:21, :33]).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(astronaut[100:121, 100:133, 0]))
    raster = from_pillow(image)
    if mode == "RGBA" and format_name not in ALPHA:
        with pytest.raises(ImageError, match="transparency"):
            encode_image(raster, format_name)
        return
    again = read_image(encode_image(raster, format_name))
    if format_name == "WEBP" and mode == "L":  # WebP has no grey.
        assert np.array_equal(again.pixels[..., :1], raster.pixels)
        return
    assert np.array_equal(again.pixels, raster.pixels)
    if raster.alpha is not None:
        assert again.alpha is not None
        assert np.array_equal(again.alpha, raster.alpha)


def test_lossy_formats_are_those_that_change_pixels(astronaut: np.ndarray) -> None:
    """Each format listed as lossy does change a photograph."""
    image = Raster(astronaut[:64, :64])
    for format_name in ("JPEG", "GIF"):
        assert format_name in LOSSY
        assert not np.array_equal(read_image(encode_image(image, format_name)).pixels, image.pixels)


def test_modes_become_grey_or_rgb(astronaut: np.ndarray) -> None:
    """1 and L stay grey, grey palettes too; colour palettes, CMYK and others become RGB; alpha is split off."""
    color = Image.fromarray(astronaut[:16, :16])
    expected = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3, "HSV": 3, "LAB": 3}
    for mode, channels in expected.items():
        if mode == "LAB":
            to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
            image = ImageCms.applyTransform(color, to_lab)
        else:
            image = color.convert(mode)
        raster = from_pillow(image)
        assert raster.pixels.shape == (16, 16, channels), mode
        assert (raster.alpha is not None) == (mode in ("LA", "RGBA")), mode
    assert from_pillow(color.convert("L").convert("P")).gray
    assert "CMYK is converted to RGB" in from_pillow(color.convert("CMYK")).notices


def test_transparent_palette_keeps_its_transparency(astronaut: np.ndarray) -> None:
    """A palette image with a transparent entry comes back with that alpha."""
    image = Image.fromarray(astronaut[:16, :16]).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    raster = read_image(encoded(image, "PNG", transparency=3))
    assert raster.alpha is not None
    assert np.array_equal(raster.alpha == 0, np.array(image) == 3)


@pytest.mark.parametrize("gray", [False, True])
def test_alpha_in_a_palette_is_kept(gray: bool) -> None:
    """A TGA whose palette has alpha, as few formats can: it is the image's, bit for bit."""
    colors = np.arange(16, dtype=np.uint8).reshape(4, 4) * (1, 0, 0, 9) if gray else np.arange(16).reshape(4, 4)
    colors = colors[:, [0, 0, 0, 3]] if gray else colors
    head = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 4, 32, 0, 0, 4, 1, 8, 0x28)
    image = read_image(head + colors.astype(np.uint8).tobytes() + bytes([3, 1, 0, 2]))
    assert image.gray == gray
    assert image.alpha is not None and image.alpha.tolist() == [colors[[3, 1, 0, 2], 3].tolist()]
    assert image.pixels[0, :, 0].tolist() == colors[[3, 1, 0, 2], 2].tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_an_icon_is_what_the_image_in_it_is(astronaut: np.ndarray, mode: str) -> None:
    """Of ICNS files Pillow knows the mode, and that there is a palette, only when they are decoded."""
    inner = encoded(Image.fromarray(astronaut[:128, :128]).convert(mode), "PNG")
    icon = read_image(b"icns" + struct.pack(">I", 16 + len(inner)) + b"ic07" + struct.pack(">I", 8 + len(inner)) + inner)
    image = read_image(inner)
    assert np.array_equal(icon.pixels, image.pixels)
    assert (icon.alpha is None) == (image.alpha is None)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"xmp": b"<x/>"}, {"lossless": True, "save_all": True}])
def test_the_size_of_a_webp_is_known_before_its_memory_is_taken(astronaut: np.ndarray, options: dict[str, object]) -> None:
    """Of all three kinds, and of other formats as Pillow tells it."""
    image = Image.fromarray(astronaut[:301, :222])
    for mode in ("RGB", "RGBA"):
        assert read_size(io.BytesIO(encoded(image.convert(mode), "WEBP", **options))) == (222, 301)
    assert read_size(io.BytesIO(encoded(image, "PNG"))) == (222, 301)


def test_sixteen_bits_are_rounded_and_said() -> None:
    """16-bit grey becomes the nearest of 256 levels, and a notice says so; 16-bit colour is noticed too."""
    values = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)
    for format_name in ("PNG", "TIFF"):
        image = read_image(encoded(Image.fromarray(values), format_name))
        assert np.array_equal(image.pixels[..., 0], np.round(values / 257).astype(np.uint8))
        assert any("8 bits" in text for text in image.notices)
    image = read_image(png(1, 1, b"\0" + struct.pack(">3H", 65535, 257 * 100, 0), depth=16))
    assert image.pixels.tolist() == [[[255, 100, 0]]]
    assert any("16-bit" in text for text in image.notices)


def test_grey_with_transparency_stays_grey() -> None:
    """16-bit grey with alpha or a transparent level, 1-bit and grey palettes with one: one channel, and the alpha that the file has."""
    both = read_image(png(2, 1, b"\0" + struct.pack(">4H", 65535, 257 * 7, 257 * 100, 257 * 9), depth=16, color=4))
    assert (both.pixels.tolist(), both.alpha is not None and both.alpha.tolist()) == ([[[255], [100]]], [[7, 9]])
    level = read_image(png(2, 1, b"\0" + struct.pack(">2H", 1000, 1001), depth=16, color=0, key=struct.pack(">H", 1000)))
    assert (level.pixels.tolist(), level.alpha is not None and level.alpha.tolist()) == ([[[4], [4]]], [[0, 255]])
    bits = read_image(png(8, 1, b"\0\x0f", depth=1, color=0, key=struct.pack(">H", 1)))
    assert (bits.pixels.ravel().tolist(), bits.alpha is not None and bits.alpha.ravel().tolist()) == (
        [0] * 4 + [255] * 4,
        [255] * 4 + [0] * 4,
    )
    palette = Image.fromarray(np.arange(4, dtype=np.uint8)[None], "L").convert("P")
    image = read_image(encoded(palette, "PNG", transparency=2))
    assert (image.pixels.ravel().tolist(), image.alpha is not None and image.alpha.tolist()) == ([0, 1, 2, 3], [[255, 255, 0, 255]])


@pytest.mark.parametrize("mode", ["CMYK", "F", "I;16", "P", "1", "RGB"])
def test_what_describes_a_tiff_file_does_not_go_into_another(astronaut: np.ndarray, mode: str) -> None:
    """A TIFF of any kind, written as another TIFF, reads as it was purified: its description is kept, not its compression or colours."""
    color = Image.fromarray(astronaut[:16, :24])
    deep = {"F": astronaut[:16, :24, 0].astype(np.float32) / 255, "I;16": astronaut[:16, :24, 0].astype(np.uint16) * 257}
    image = Image.fromarray(deep[mode]) if mode in deep else color.convert(mode)
    exif = Image.Exif()
    exif[0x010E] = "a woman"
    raster = read_image(encoded(image, "TIFF", compression="tiff_lzw", exif=exif))
    for format_name in ("TIFF", "PNG", "JPEG"):
        data = encode_image(raster, format_name)
        again = read_image(data)
        assert again.pixels.shape == raster.pixels.shape
        assert np.abs(again.pixels.astype(int) - raster.pixels).mean() < (20 if format_name == "JPEG" else 0.001)
        kept = Image.open(io.BytesIO(data)).getexif()
        assert kept[0x010E] == "a woman"
        if format_name != "TIFF":
            assert not {256, 257, 258, 259, 262, 273, 279, 320, 338, 339} & set(kept)


def test_damaged_exif_is_left_out_and_said(astronaut: np.ndarray) -> None:
    """An image whose EXIF block cannot be read is purified all the same."""
    image = read_image(encoded(Image.fromarray(astronaut[:9, :8]), "PNG", exif=b"Exif\0\0garbage"))
    assert (image.pixels.shape, image.exif) == ((9, 8, 3), None)
    assert "its EXIF block is damaged and was left out" in image.notices


def test_a_pillow_image_is_left_as_it_was(astronaut: np.ndarray) -> None:
    """Read twice, an image with an orientation is turned twice from the same start."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(astronaut[:9, :8]), "PNG", exif=exif.tobytes())))
    for _ in range(2):
        assert from_pillow(image).pixels.shape == (8, 9, 3)
    assert image.getexif()[ORIENTATION] == 6


def test_profiles_of_other_colours_are_left_out(astronaut: np.ndarray) -> None:
    """A grey image that comes with an RGB profile, as palettes do, comes out without it, and a notice says so."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gray = Image.fromarray(astronaut[:8, :8, 0]).convert("P")
    image = read_image(encoded(gray, "PNG", icc_profile=profile))
    assert (image.gray, image.icc) == (True, None)
    assert any("profile" in text for text in image.notices)
    assert read_image(encoded(Image.fromarray(astronaut[:8, :8]), "PNG", icc_profile=profile)).icc == profile


def test_sides_that_a_format_cannot_hold_are_refused() -> None:
    """What the formats' own writers refuse is refused before the work, and what they take is not."""
    for format_name, side in MAX_SIDE.items():
        with pytest.raises(ImageError, match="a side"):
            refuse_misfit(Raster(np.zeros((1, side + 1, 1), np.uint8)), format_name)
        refuse_misfit(Raster(np.zeros((1, side, 1), np.uint8)), format_name)
    for format_name in ("JPEG", "WEBP"):
        with pytest.raises((OSError, ValueError)):
            encoded(Image.new("L", (MAX_SIDE[format_name] + 1, 1)), format_name)
        assert encoded(Image.new("L", (MAX_SIDE[format_name], 1)), format_name)


def test_images_without_a_known_range_are_refused() -> None:
    """32-bit integers and floats outside their ranges are an error, not a guess; floats in [0, 1] are read."""
    for values in (np.full((4, 4), 70000, np.int32), np.full((4, 4), 1.5, np.float32), np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(ImageError, match="range"):
            read_image(encoded(Image.fromarray(values), "TIFF"))
    assert read_image(encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")).pixels.max() == 128


def test_only_the_first_frame_is_taken_and_said(astronaut: np.ndarray) -> None:
    """Of an animation, the first frame is read, with a notice of how many there are."""
    frames = [Image.fromarray(astronaut[top : top + 16, :16]) for top in (0, 100, 200)]
    for format_name in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if format_name == "WEBP" else {}
        image = read_image(encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
        assert any("first of 3 frames" in text for text in image.notices)
        if format_name != "GIF":
            assert np.array_equal(image.pixels, astronaut[:16, :16])


def test_damaged_files_are_one_image_error(tmp_path: Path, astronaut: np.ndarray) -> None:
    """Missing, empty, a folder, text, truncated, a bomb: each an ImageError that names the file."""
    whole = encoded(Image.fromarray(astronaut), "PNG")
    cases = {"empty.png": b"", "text.png": b"hello", "cut.png": whole[: len(whole) // 2], "bomb.png": png_claiming(60000, 60000)}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="--max-megapixels"):
        read_image(encoded(Image.fromarray(astronaut), "PNG"), max_megapixels=0.2)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.integers(0, 2**32), st.integers(1, 20))
def test_mutated_files_never_raise_anything_else(format_name: str, seed: int, count: int) -> None:
    """Files with changed, missing or repeated bytes decode or raise ImageError."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((3, 3, 1))).astype(np.uint8)
    data = bytearray(encoded(Image.fromarray(pixels), format_name))
    for place in rng.integers(0, len(data), count):
        data[place] = rng.integers(256)
    cut = bytes(data[: rng.integers(1, len(data) + 1)]) if seed % 3 == 0 else bytes(data)
    try:
        image = read_image(cut, max_megapixels=1)
    except ImageError:
        return
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape[2] in (1, 3)


def test_alpha_is_never_dropped_unasked(astronaut: np.ndarray) -> None:
    """Writing an image with alpha to a format without it is an error that names formats with it."""
    image = Raster(astronaut[:8, :8], alpha=astronaut[:8, :8, 0])
    for format_name in WRITABLE - ALPHA:
        with pytest.raises(ImageError, match="transparency"):
            encode_image(image, format_name)
    for format_name in ALPHA & set(list_suffixes(writable=True).values()):
        again = read_image(encode_image(image, format_name))
        assert again.alpha is not None


def test_endings_decide_the_format() -> None:
    """Known endings map to formats, in any case; unknown ones are an error of usage."""
    assert find_format(Path("a.PNG")) == "PNG"
    assert find_format(Path("a.jpeg")) == "JPEG"
    for name in ("a", "a.txt", "a.pdf", "a.xyz"):
        with pytest.raises(UsageError, match="ending"):
            find_format(Path(name))


def test_write_is_whole_or_not_at_all(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing file is replaced only when asked, and a failure leaves the old file and no other."""
    path = tmp_path / "a.png"
    write_image(path, Raster(astronaut[:8, :8]))
    first = path.read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        write_image(path, Raster(astronaut[8:16, :8]))
    assert path.read_bytes() == first

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ComdefendError, match="no space left"):
        write_image(path, Raster(astronaut[8:16, :8]), overwrite=True)
    monkeypatch.undo()
    assert path.read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]
    write_image(path, Raster(astronaut[8:16, :8]), overwrite=True)
    assert np.array_equal(read_image(path).pixels, astronaut[8:16, :8])


def test_formats_that_start_other_programs_are_not_decoded() -> None:
    """PostScript, which Pillow gives to Ghostscript, is refused as an unknown format."""
    document = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match="unknown format"):
        read_image(document)
    assert ".eps" not in list_suffixes(writable=False)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_a_file_in_memory_holds_the_same_bytes(monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray, format_name: str) -> None:
    """Large images are encoded into one, small ones are not; what comes of it does not depend on that."""
    image = from_pillow(Image.fromarray(astronaut))
    in_file = encode_image(image, format_name)
    monkeypatch.setattr("comdefend_cli.imaging.writing._FILE_MEGAPIXELS", 1e9)
    assert encode_image(image, format_name) == in_file
    assert read_image(in_file).pixels.shape == astronaut.shape


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="is about Linux")
def test_encoding_leaves_no_file_open(astronaut: np.ndarray) -> None:
    """Also where it fails."""
    image = from_pillow(Image.fromarray(astronaut))
    before = os.listdir("/proc/self/fd")
    encode_image(image, "JPEG")
    with pytest.raises(ImageError, match="cannot write this image as JPEG"):
        encode_image(replace(image, exif=b"Exif\0\0" + bytes(70_000)), "JPEG")
    assert os.listdir("/proc/self/fd") == before
