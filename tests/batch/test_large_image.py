"""Rows of image files, read by libvips as the ordinary way reads the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comdefend_cli.errors import ImageError
from comdefend_cli.imaging.reading import read_image

pytest.importorskip("pyvips")

import pyvips

from comdefend_cli.batch.large_image import open_large_image, take_last_line


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("told_by", ["exif", "xmp"])
def test_rows_are_read_upright(tmp_path: Path, astronaut: np.ndarray, orientation: int, told_by: str) -> None:
    """Whichever way a file is turned, and whichever block tells of it; a piece at a time, as the ordinary way reads the whole."""
    source, information, exif = tmp_path / "in.png", PngInfo(), Image.Exif()
    if told_by == "exif":
        exif[274] = orientation
    else:
        xmp = f'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        information.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(astronaut[:13, :29]).save(source, pnginfo=information, exif=exif)
    image, expected = open_large_image(source), read_image(source).pixels
    assert (image.height, image.width, image.bands) == expected.shape
    found = np.empty_like(expected)
    for start, stop in ((0, 1), (1, 8), (8, len(found))):
        image.read(found[start:stop])
    assert np.array_equal(found, expected)


def read_rows(source: Path) -> np.ndarray:
    """All of a large image."""
    image = open_large_image(source)
    found = np.empty((image.height, image.width, image.bands), np.uint8)
    image.read(found)
    return found


def test_deep_samples_become_the_same_levels(tmp_path: Path) -> None:
    """Of each of the 65,536 there are."""
    Image.fromarray(np.arange(2**16, dtype=np.uint16).reshape(256, 256)).save(tmp_path / "in.png")
    assert np.array_equal(read_rows(tmp_path / "in.png"), read_image(tmp_path / "in.png").pixels)


def test_of_several_pages_the_first_is_taken(tmp_path: Path, astronaut: np.ndarray) -> None:
    """And it is said."""
    first, second = (Image.fromarray(astronaut[:8, start : start + 9]) for start in (0, 50))
    first.save(tmp_path / "in.tiff", save_all=True, append_images=[second])
    assert np.array_equal(read_rows(tmp_path / "in.tiff"), np.array(first))
    assert open_large_image(tmp_path / "in.tiff").notices == read_image(tmp_path / "in.tiff").notices != []


def test_what_libvips_refuses_is_named(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose header Pillow takes and libvips does not is damaged, by the last line of libvips's account."""
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "in.png")

    def refuse(*arguments: object, **more: object) -> None:
        raise pyvips.Error("unable to call pngload", "pngload: a layer\n  libspng read error\n")

    monkeypatch.setattr(pyvips.Image, "pngload", refuse, raising=False)
    with pytest.raises(ImageError, match=r"in\.png: damaged or truncated image: libspng read error; get a whole copy"):
        open_large_image(tmp_path / "in.png")
    assert take_last_line(pyvips.Error("only a message")) == "only a message"
    assert take_last_line(pyvips.Error("", " \n")) == "unknown"
    assert take_last_line(ValueError("another's")) == "another's"


def test_a_profile_is_for_the_colours_there_are(tmp_path: Path, astronaut: np.ndarray) -> None:
    """One of grey for grey, one of RGB for colour; another is left out, and it is said."""
    for kind, pixels in ((b"GRAY", astronaut[:8, :8, 0]), (b"RGB ", astronaut[:8, :8])):
        for space in (b"GRAY", b"RGB ", b"CMYK"):
            profile = bytes(16) + space + bytes(200)
            Image.fromarray(pixels).save(tmp_path / "in.png", icc_profile=profile)
            image = open_large_image(tmp_path / "in.png")
            assert (image.icc, len(image.notices)) == ((profile, 0) if space == kind else (None, 1))
            assert (image.gray, image.channels, image.alpha) == (kind == b"GRAY", 1 if kind == b"GRAY" else 3, False)
