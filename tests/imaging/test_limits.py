"""Ranges at their edges: sides, pixels, levels, and which profile belongs to which image."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, TiffTags

from comdefend_cli.errors import ImageError, UsageError
from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.depth import count_bits
from comdefend_cli.imaging.formats import ALPHA, LOSSY, READABLE, WITH_QUALITY, WRITABLE, find_readable_formats, refuse_quality
from comdefend_cli.imaging.limits import MAX_SIDE, refuse_megapixels, refuse_sides
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.imaging.writing import encode_image


def test_pixels_are_limited_to_the_last_one() -> None:
    """No side may be empty; as many pixels as the limit are decoded, and not one more."""
    for width, height in ((0, 5), (5, 0), (0, 0), (-1, 5)):
        with pytest.raises(ImageError, match=r"x: has no pixels"):
            refuse_megapixels("x", width, height, 1)
    refuse_megapixels("x", 1, 1, 1)
    refuse_megapixels("x", 1000, 1000, 1)
    with pytest.raises(ImageError, match=r"x: 1000x1001 is 1 megapixels, over the limit of 1; raise it"):
        refuse_megapixels("x", 1000, 1001, 1)


@pytest.mark.parametrize("name", ["GIF", "TGA", "PCX", "SGI", "AVIF", "WEBP", "JPEG"])
def test_sides_are_limited_by_the_format(name: str) -> None:
    """The longest that it holds is written, in either direction, and not one more; other formats hold any."""
    most = {"WEBP": 16383, "JPEG": 65500}.get(name, 65535)
    assert MAX_SIDE[name] == most
    for width, height in ((most, 1), (1, most), (most, most)):
        refuse_sides(name, width, height)
        refuse_sides("PNG", width * 2, height * 2)
    for width, height in ((most + 1, 1), (1, most + 1)):
        with pytest.raises(ImageError, match=f"{name} holds at most {most} pixels a side, not {width}x{height}"):
            refuse_sides(name, width, height)


def test_wide_samples_have_a_known_range() -> None:
    """Integers from 0 to 65535 and floats from 0 to 1, ends included, are rounded to the nearest level; beyond, there is none."""
    for values, levels in (
        (np.array([[0, 128, 129, 65535]], np.int32), [0, 0, 1, 255]),
        (np.array([[0.0, 0.0019, 0.002, 1.0]], np.float32), [0, 0, 1, 255]),
    ):
        raster = from_pillow(Image.fromarray(values))
        assert raster.pixels[0, :, 0].tolist() == levels and "rounded" in raster.notices[0]
        for wrong in (-1, 65536 if values.dtype == np.int32 else 1.01):
            with pytest.raises(ImageError, match="has no known range"):
                from_pillow(Image.fromarray(np.array([[0, wrong]], values.dtype)))
    with pytest.raises(ImageError, match="has no known range"):
        from_pillow(Image.fromarray(np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize(("mode", "kind"), [("L", b"GRAY"), ("LA", b"GRAY"), ("1", b"GRAY"), ("RGB", b"RGB "), ("RGBA", b"RGB ")])
def test_a_profile_of_another_kind_of_colour_is_left_out(mode: str, kind: bytes) -> None:
    """Grey images keep profiles of greys and coloured ones those of colours, byte for byte; of the others a notice tells."""
    for profile in (b"GRAY", b"RGB ", b"CMYK"):
        image = Image.new(mode, (3, 2))
        image.info["icc_profile"] = bytes(16) + profile + bytes(108)
        raster = from_pillow(image)
        assert raster.icc == (image.info["icc_profile"] if profile == kind else None)
        assert any("another kind of colour" in notice for notice in raster.notices) == (profile != kind)


def test_cmyk_is_told_of_and_a_damaged_profile_too() -> None:
    """Without a profile there is nothing to be damaged; either way none is kept, since the colours are others now."""
    image = Image.new("CMYK", (3, 2), (255, 0, 0, 0))
    plain = from_pillow(image)
    assert plain.notices == ["CMYK is converted to RGB"] and plain.icc is None and plain.pixels[0, 0].tolist() == [0, 255, 255]
    image.info["icc_profile"] = b"damaged" * 30
    damaged = from_pillow(image)
    assert damaged.notices == ["CMYK is converted to RGB", "its ICC profile is damaged and was not used"] and damaged.icc is None
    assert np.array_equal(plain.pixels, damaged.pixels)


def test_formats_are_named_as_pillow_names_them() -> None:
    """A name that Pillow does not know would be a format that is refused without a word; three of them may be built without."""
    Image.init()
    optional = {"AVIF", "JPEG2000", "WEBP"}
    assert READABLE - optional <= Image.OPEN.keys() and WRITABLE - optional <= Image.SAVE.keys() and optional <= WRITABLE
    assert {*LOSSY, *WITH_QUALITY, *ALPHA, *MAX_SIDE} <= WRITABLE <= READABLE
    assert set(find_readable_formats()) == READABLE & Image.OPEN.keys()
    for name in WITH_QUALITY:
        refuse_quality(name, 80)
    with pytest.raises(UsageError, match="--quality is for JPEG and AVIF, PNG has none"):
        refuse_quality("PNG", 80)


def test_what_pillow_made_itself_has_no_format() -> None:
    """Its colours and size are known all the same; premultiplied grey is grey."""
    raster = from_pillow(Image.new("L", (3, 2)))
    assert (raster.source, raster.megapixels, raster.gray) == ("", 6e-6, True)
    assert from_pillow(Image.new("LA", (3, 2), (9, 255)).convert("La")).gray


def test_of_tiff_s_tags_those_that_tell_of_the_image_are_kept() -> None:
    """Of all that TIFF 6.0 names, by Pillow's names; the others tell how a file holds its pixels, and would contradict another file."""
    image = Image.new("L", (3, 2))
    tags, names = image.getexif(), {tag: TiffTags.lookup(tag).name for tag in range(254, 533)}
    tags.update({tag: 1 for tag, name in names.items() if name != "unknown"})
    kept = Image.Exif()
    kept.load(from_pillow(image).exif or b"")
    texts = "DocumentName ImageDescription Make Model PageName Software DateTime Artist HostComputer"
    numbers = "XResolution YResolution XPosition YPosition ResolutionUnit PageNumber WhitePoint PrimaryChromaticities"
    assert {names[tag] for tag in kept} == {*texts.split(), *numbers.split()}


def test_iptc_in_a_png_is_written_as_imagemagick_does() -> None:
    """Its kind, its length in eight places, and hexadecimal lines."""
    raster = replace(from_pillow(Image.new("L", (3, 2))), iptc=b"\x1c\x02\x78\x00\x05hello")
    text = Image.open(io.BytesIO(encode_image(raster, "PNG"))).info["Raw profile type iptc"]
    _, kind, length, *lines = text.split("\n")
    assert kind == "iptc" and len(length) == 8 and int(length) == len(bytes.fromhex("".join(lines)))
    assert read_image(encode_image(raster, "PNG")).iptc == raster.iptc


def test_looking_for_the_depth_leaves_the_file_where_it_was() -> None:
    """Whatever the format, the image is decoded afterwards as if nobody had looked."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name in ("PNG", "PPM", "SGI", "JPEG2000", "TIFF", "AVIF"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, name)
        image = Image.open(stream)
        place = stream.tell()
        assert (count_bits(image), stream.tell()) == (8, place), name
        if name != "AVIF":
            assert np.array_equal(np.array(image), pixels), name
