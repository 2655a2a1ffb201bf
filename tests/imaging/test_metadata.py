"""What a file says about its image goes into the next one: XMP and IPTC, from each format into each that has a place for them."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, IptcImagePlugin, PngImagePlugin, TiffImagePlugin

from comdefend_cli.errors import ImageError
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.imaging.writing import encode_image, fit_to_format

XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"%s dc:source="caf\xc3\xa9">%s</rdf:Description>'
    b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
PLAIN_XMP = XMP % (b"", b"")
#: A caption and two keywords, as IIM 4 writes them.
IPTC = b"".join(
    b"\x1c\x02" + struct.pack(">BH", dataset, len(text)) + text for dataset, text in ((120, b"a woman"), (25, b"space"), (25, b"NASA!"))
)
FIELDS = {(2, 120): b"a woman", (2, 25): [b"space", b"NASA!"]}
BLOCK = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
OTHER_BLOCK = b"8BIM\x04\x0b\x03abc" + struct.pack(">I", 3) + b"www\0"
_BLOCKS = b"Photoshop 3.0\0" + OTHER_BLOCK + BLOCK
#: What makes Pillow's writer of JPEG write both.
JPEG: dict[str, Any] = {"xmp": PLAIN_XMP, "extra": b"\xff\xed" + struct.pack(">H", 2 + len(_BLOCKS)) + _BLOCKS}
#: Formats that hold both.
BOTH = ("JPEG", "PNG", "TIFF")


def tags(**more: Any) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A TIFF's tags with XMP, and with others."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value, kind in ((700, PLAIN_XMP, 1), *more.values()):
        directory.tagtype[tag], directory[tag] = kind, value
    return directory


def texts() -> PngImagePlugin.PngInfo:
    """A PNG's XMP, and IPTC as ImageMagick writes it."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", PLAIN_XMP.decode(), zip=True)
    data = OTHER_BLOCK + BLOCK
    lines = [data.hex()[i : i + 72] for i in range(0, 2 * len(data), 72)]
    info.add_text("Raw profile type iptc", "\n".join(["", "iptc", f"{len(data):8}", *lines, ""]), zip=True)
    return info


PADDED = IPTC + bytes(-len(IPTC) % 4)


def tiff_of_numbers(order: str) -> bytes:
    """A TIFF whose IPTC is declared as numbers of 32 bits, as many programs do."""
    buffer = io.BytesIO()
    numbers = struct.unpack(f"{order}{len(PADDED) // 4}I", PADDED)
    more = [(700, 1, len(PLAIN_XMP), PLAIN_XMP, True), (33723, 4, len(numbers), numbers, True)]
    tifffile.imwrite(buffer, np.zeros((16, 24, 3), np.uint8), byteorder=order, photometric="rgb", metadata=None, extratags=more)
    return buffer.getvalue()


SOURCES: dict[str, tuple[str, dict[str, Any], bytes | None, bytes | None]] = {
    "JPEG": ("JPEG", JPEG, PLAIN_XMP, IPTC),
    "PNG": ("PNG", {"pnginfo": texts()}, PLAIN_XMP, IPTC),
    "TIFF": ("TIFF", {"tiffinfo": tags(iptc=(33723, IPTC, 7))}, PLAIN_XMP, IPTC),
    "TIFF, Photoshop's": ("TIFF", {"tiffinfo": tags(blocks=(34377, OTHER_BLOCK + BLOCK + OTHER_BLOCK, 1))}, PLAIN_XMP, IPTC),
    "WebP": ("WEBP", {"xmp": PLAIN_XMP}, PLAIN_XMP, None),
    "AVIF": ("AVIF", {"xmp": PLAIN_XMP}, PLAIN_XMP, None),
    "none": ("PNG", {}, None, None),
}


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def add_xmp(xmp: bytes) -> PngImagePlugin.PngInfo:
    """XMP for a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return info


def photo_of(astronaut: np.ndarray) -> Image.Image:
    return Image.fromarray(astronaut[:16, :24])


@pytest.mark.parametrize("source", SOURCES)
def test_xmp_and_iptc_are_carried_and_stripped(astronaut: np.ndarray, source: str) -> None:
    """Read by Pillow, an output holds the XMP and the IPTC of the file it came from, in each format with a place; not if stripped."""
    format_name, options, xmp, iptc = SOURCES[source]
    raster = read_image(encoded(photo_of(astronaut), format_name, **options))
    assert (raster.xmp, raster.iptc, raster.notices) == (xmp, iptc, [])
    for target in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        data = encode_image(raster, target)
        kept = Image.open(io.BytesIO(data))
        kept.load()
        assert kept.info.get("xmp") == xmp
        if target in ("JPEG", "TIFF"):
            assert (IptcImagePlugin.getiptcinfo(kept) or None) == (FIELDS if iptc else None)
        again = read_image(data)
        assert (again.xmp, again.iptc) == (xmp, iptc if target in BOTH else None)
        stripped = read_image(encode_image(raster, target, strip=True))
        assert (stripped.xmp, stripped.iptc) == (None, None)


def test_they_do_not_displace_exif_or_profile(astronaut: np.ndarray) -> None:
    """A TIFF and a JPEG with all four hand all four on."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    first = read_image(encoded(photo_of(astronaut), "JPEG", exif=exif, **JPEG))
    for target in BOTH:
        again = read_image(encode_image(first, target))
        kept = Image.Exif()
        kept.load(again.exif)
        assert (kept[0x010F], again.xmp, again.iptc) == ("maker", PLAIN_XMP, IPTC)


@pytest.mark.parametrize("order", ["<", ">"])
def test_iptc_that_a_tiff_declares_as_numbers(order: str) -> None:
    """It is read whole, in both orders of bytes, and handed on as bytes."""
    raster = read_image(tiff_of_numbers(order))
    assert (raster.xmp, raster.iptc) == (PLAIN_XMP, PADDED)
    assert IptcImagePlugin.getiptcinfo(Image.open(io.BytesIO(encode_image(raster, "JPEG")))) == FIELDS
    assert tifffile.TiffFile(io.BytesIO(encode_image(raster, "TIFF"))).pages[0].tags[33723].value == PADDED


@pytest.mark.parametrize(
    "written", [(b' tiff:Orientation="6"', b""), (b"\n tiff:Orientation = '6'", b""), (b"", b"<tiff:Orientation>6</tiff:Orientation>")]
)
@pytest.mark.parametrize("exif_orientation", [None, 1, 6])
def test_no_orientation_is_left_in_xmp(astronaut: np.ndarray, written: tuple[bytes, bytes], exif_orientation: int | None) -> None:
    """An image is turned once: its output, which is upright, tells of no orientation in XMP either, also where EXIF contradicts it."""
    options: dict[str, Any] = {"xmp": XMP % written}
    if exif_orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = exif_orientation
    raster = read_image(encoded(photo_of(astronaut), "JPEG", **options))
    assert raster.xmp is not None and b"Orientation" not in raster.xmp and b"caf\xc3\xa9" in raster.xmp
    for target in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert read_image(encode_image(raster, target)).pixels.shape == raster.pixels.shape


def test_what_a_jpeg_has_no_room_for_is_left_out(astronaut: np.ndarray) -> None:
    """XMP and IPTC of more than a marker's 64 kB stay in other formats, and the image is written as JPEG without; up to there, with."""
    caption = b"\x1c\x02\x78"
    for size, fits in ((65504, True), (65505, False)):
        raster = read_image(encoded(photo_of(astronaut), "TIFF", tiffinfo=tags(long=(700, b"<x>" + b"a" * (size - 3), 1))))
        assert read_image(encode_image(raster, "PNG")).xmp == raster.xmp
        assert read_image(encode_image(raster, "JPEG")).xmp == (raster.xmp if fits else None)
    for size, fits in ((65506, True), (65508, False)):
        raster = read_image(encoded(photo_of(astronaut), "TIFF", tiffinfo=tags(iptc=(33723, caption + b"a" * (size - 3), 7))))
        assert read_image(encode_image(raster, "TIFF")).iptc == raster.iptc
        assert read_image(encode_image(raster, "JPEG")).iptc == (raster.iptc if fits else None)


def test_damaged_blocks_are_left_out_and_said(astronaut: np.ndarray) -> None:
    """XMP that is no UTF-8, and IPTC that is none, do not stop an image, and do not go into another file."""
    raster = read_image(encoded(photo_of(astronaut), "JPEG", xmp=b"<x>\xff\xfe</x>"))
    assert (raster.xmp, raster.notices) == (None, ["its XMP packet is damaged and was left out"])
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type iptc", "\niptc\n  4\nxyz")
    for options in ({"format_name": "PNG", "pnginfo": texts}, {"format_name": "TIFF", "tiffinfo": tags(iptc=(33723, b"no records", 7))}):
        raster = read_image(encoded(photo_of(astronaut), **options))
        assert (raster.iptc, raster.notices) == (None, ["its IPTC block is damaged and was left out"])


def test_files_made_to_take_long_do_not(astronaut: np.ndarray) -> None:
    """A megabyte of blanks, of half an orientation or of empty blocks is read as fast as any other."""
    began = time.process_time()
    for text in (b" ", b"tiff:Orientation ", b"tiff:Orientation='", b"<tiff:Orientation>"):
        long = PLAIN_XMP + text * (2**20 // len(text))
        assert read_image(encoded(photo_of(astronaut), "PNG", pnginfo=add_xmp(long))).xmp
    blocks = tags(blocks=(34377, (b"8BIM\x04\x0b" + bytes(6)) * 2**17, 1))
    assert read_image(encoded(photo_of(astronaut), "TIFF", tiffinfo=blocks)).iptc is None
    assert time.process_time() - began < 10


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SOURCES)), st.integers(0, 2**32), st.integers(1, 20))
def test_mutated_files_never_raise_anything_else(source: str, seed: int, count: int) -> None:
    """Files with XMP and IPTC whose bytes are changed are read and written again, or are an ImageError."""
    rng = np.random.default_rng(seed)
    format_name, options, _, _ = SOURCES[source]
    data = bytearray(encoded(Image.new("RGB", (9, 7), (200, 30, 10)), format_name, **options))
    for place in rng.integers(0, len(data), count):
        data[place] = rng.integers(256)
    try:
        raster = read_image(bytes(data), max_megapixels=1)
        for target in BOTH:
            if raster.alpha is None:
                encode_image(raster, target)
    except ImageError:
        return


def test_xmp_that_a_png_holds_as_plain_text(astronaut: np.ndarray) -> None:
    """As libvips writes it: the bytes of UTF-8 in a text chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_text("XML:com.adobe.xmp", PLAIN_XMP.decode("latin-1"))
    assert read_image(encoded(photo_of(astronaut), "PNG", pnginfo=info)).xmp == PLAIN_XMP


CAMERA, PLACE, COMPATIBILITY = 0x8769, 0x8825, 0xA005


@pytest.mark.parametrize("big", [False, True])
def test_exif_of_camera_and_place_goes_into_tiff_too(astronaut: np.ndarray, big: bool) -> None:
    """From a JPEG, and from a TIFF with offsets of 64 bits, into a compressed TIFF that libtiff reads."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[CAMERA] = {0x829A: 0.5, 0x927C: b"of the maker", COMPATIBILITY: {1: "R98"}}
    exif[PLACE] = {1: "N", 2: (1.0, 2.0, 3.0)}
    if big:
        # Pillow writes no block within a block there.
        raster, within = read_image(encoded(photo_of(astronaut), "TIFF", exif=exif.tobytes(), big_tiff=True)), {}
    else:
        raster, within = read_image(encoded(photo_of(astronaut), "JPEG", exif=exif, **JPEG)), {1: "R98"}
    assert raster.notices == []
    data = encode_image(raster, "TIFF")
    with Image.open(io.BytesIO(data)) as kept:
        assert np.array_equal(np.array(kept), raster.pixels)
        found = kept.getexif()
        assert kept.info["compression"] == "tiff_adobe_deflate"
        assert (found[0x010F], found.get_ifd(CAMERA)[0x829A], found.get_ifd(CAMERA)[0x927C]) == ("maker", 0.5, b"of the maker")
        assert (found.get_ifd(COMPATIBILITY), found.get_ifd(PLACE)) == (within, {1: "N", 2: (1.0, 2.0, 3.0)})
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages[0].tags["ExifTag"].value["ExposureTime"] == 0.5
        assert np.array_equal(file.asarray(), raster.pixels)


def test_what_a_format_refuses_is_left_out_and_said(astronaut: np.ndarray) -> None:
    """Single EXIF tags that TIFF's writer refuses, all of EXIF where JPEG has no room, a profile as large: never the image."""
    odd = Image.Exif()
    odd[0x010F], odd[318] = "maker", 3  # A white point has two numbers.
    large = Image.Exif()
    large[0x010E] = "a woman" * 10_000
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for block, target, words, stays in (
        (odd.tobytes(), "TIFF", "EXIF tags 318 cannot be written as TIFF", True),
        (large.tobytes(), "JPEG", "its EXIF block", False),
    ):
        raster = Raster(astronaut[:5, :6], exif=block, icc=icc)
        with pytest.raises(ImageError):
            encode_image(raster, target)
        fitted = fit_to_format(raster, target)
        assert len(fitted.notices) == 1 and fitted.notices[0].startswith(words) and target in fitted.notices[0]
        again = read_image(encode_image(fitted, target))
        assert (again.icc, again.exif is not None) == (icc, stays)
        assert fit_to_format(raster, target, strip=True) is raster
        assert fit_to_format(fitted, target) is fitted


def test_what_could_not_be_read_again_is_left_out(astronaut: np.ndarray) -> None:
    """A profile that Pillow writes into a PNG and then refuses to read for its length, and a tag that makes a TIFF unreadable."""
    profile = bytes(16) + b"RGB " + bytes(2**20)
    fitted = fit_to_format(Raster(astronaut[:5, :6], icc=profile), "PNG")
    assert fitted.notices == ["its ICC profile cannot be written as PNG and was left out"]
    assert np.array_equal(read_image(encode_image(fitted, "PNG")).pixels, astronaut[:5, :6])
    exif = Image.Exif()
    exif[0x010F], exif[32996] = "maker", 2  # How an old file holds its samples.
    raster = read_image(encoded(photo_of(astronaut), "TIFF", exif=exif.tobytes()))
    assert np.array_equal(read_image(encode_image(raster, "TIFF")).pixels, raster.pixels)
