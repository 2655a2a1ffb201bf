"""Image files whose rows are read from top to bottom by libvips (extra `[large]`), in memory that does not grow with the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comdefend_cli.errors import ImageError, UsageError, explain
from comdefend_cli.imaging.conversion import tell_frames
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS
from comdefend_cli.imaging.metadata import read_exif, read_iptc, read_xmp
from comdefend_cli.imaging.reading import open_image
from comdefend_cli.runtime.extras import require

EXTRA = "large"
#: What is read, by Pillow's names, and libvips's operations that do it.
READERS = {"PNG": "pngload", "TIFF": "tiffload", "JPEG": "jpegload"}
#: Pillow's modes whose pixels need no more than a cut to 8 bits.
MODES = {"1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
#: Bytes of decoded rows that are asked of libvips at once, which holds several copies of them.
_READ = 2**20


@dataclass
class LargeImage:
    """An image file whose rows are read from top to bottom.

    Attributes:
        path: of the file.
        width, height: upright, in pixels.
        bands: channels with that of transparency, 1 to 4.
        icc, exif, xmp, iptc: blocks to hand on, or None.
        notices: what is changed in reading, one sentence each.
    """

    path: Path
    width: int
    height: int
    bands: int
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    iptc: bytes | None
    notices: list[str] = field(default_factory=list)
    _load: Callable[[], Any] = field(default=lambda: None, repr=False)
    _region: Any = field(default=None, repr=False)
    _next: int = 0

    @property
    def gray(self) -> bool:
        """Whether it has one channel of colour."""
        return self.bands < 3

    @property
    def channels(self) -> int:
        """Of colour: 1 or 3."""
        return 1 if self.gray else 3

    @property
    def alpha(self) -> bool:
        """Whether it has transparency."""
        return self.bands > self.channels

    def read(self, taken: np.ndarray) -> None:
        """Put the next rows into an array, uint8 (rows, width, bands).

        Raises:
            ImageError: the file is damaged, or cannot be read any more.
        """
        pyvips = require("pyvips", extra=EXTRA)
        step = max(1, _READ // (self.width * self.bands))
        try:
            if self._region is None:
                self._region = pyvips.Region.new(self._load())
            for start in range(0, len(taken), step):
                part = taken[start : start + step]
                data = self._region.fetch(0, self._next + start, self.width, len(part))
                part[:] = np.frombuffer(data, np.uint8).reshape(part.shape)
        except pyvips.Error as error:
            raise _make_damage_error(self.path, error) from error
        except OSError as error:
            raise ImageError(f"{self.path}: cannot read: {explain(error)}; check the disk that it is on") from error
        self._next += len(taken)


def open_large_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> LargeImage:
    """An image file, of which only the header is read yet.

    Raises:
        ImageError: missing, not an image, over the limit, or of a kind that is not read in strips.
        UsageError: libvips is not installed.
    """
    require("pyvips", extra=EXTRA)
    with open_image(path, max_megapixels=max_megapixels) as image:
        _refuse_other_kinds(path, image)
        notices: list[str] = []
        exif, orientation = read_exif(image, notices)
        xmp, iptc = read_xmp(image, notices), read_iptc(image, notices)
        tell_frames(image, notices)
        kind, icc = READERS[image.format or ""], image.info.get("icc_profile")
    load = _make_loader(path, kind, orientation=orientation, notices=notices)
    found = load()
    if icc and icc[16:20] != (b"GRAY" if found.bands < 3 else b"RGB "):
        notices.append("its ICC profile is for another kind of colour and was left out")
        icc = None
    return LargeImage(path, found.width, found.height, found.bands, icc, exif, xmp, iptc, notices, load)


def can_read(path: Path) -> bool:
    """Whether a file is of a kind that :func:`open_large_image` reads, by its header."""
    try:
        with Image.open(path, formats=list(READERS)) as image:
            _refuse_other_kinds(path, image)
            return True
    except Exception:
        return False


def is_installed() -> bool:
    """Whether libvips is there."""
    try:
        require("pyvips", extra=EXTRA)
    except (UsageError, OSError):
        return False
    return True


def _make_loader(path: Path, kind: str, *, orientation: int, notices: list[str]) -> Callable[[], Any]:
    """A function that opens the file in libvips anew, upright and as 8 bits; read from top to bottom without being held.

    An image that is to be turned cannot be read so: libvips decodes it into a file of the system's folder for such.
    """
    pyvips = require("pyvips", extra=EXTRA)

    def load() -> Any:
        try:
            image = getattr(pyvips.Image, kind)(str(path), access="sequential" if orientation == 1 else "random", fail_on="error")
            if orientation != 1:
                image = image.copy()
                image.set_type(pyvips.GValue.gint_type, "orientation", orientation)  # XMP may have told of it, which libvips does not read.
                image = image.autorot()
            return _cut_to_8_bits(path, image)
        except pyvips.Error as error:
            raise _make_damage_error(path, error) from error

    if load().get("comdefend-deep"):
        notices.append("16-bit samples are reduced to 8 bits: the code has 12 bits a pixel")
    return load


def _cut_to_8_bits(path: Path, image: Any) -> Any:
    """As :func:`comdefend_cli.imaging.reading.read_image` does it: grey rounded to the nearest level, colour cut."""
    deep = image.format == "ushort"
    if image.format not in ("uchar", "ushort"):
        raise ImageError(f"{path}: images of {image.bands} bands of {image.format} are not read in strips; use --no-strips")
    if deep and image.bands == 1:
        image = (image * (255 / 65535) + 0.5).floor().cast("uchar")
    elif deep:
        image = (image >> 8).cast("uchar")
    image = image.copy()
    image.set_type(require("pyvips", extra=EXTRA).GValue.gint_type, "comdefend-deep", int(deep))
    return image


def _refuse_other_kinds(path: Path, image: Image.Image) -> None:
    # Of a TIFF's samples, Pillow leaves out what libvips would take for transparency, and takes no more than four.
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    samples, unspecified = tags.get(277, 1), 0 in tuple(np.atleast_1d(tags.get(338, ())))
    other = image.format not in READERS or image.mode not in MODES or samples > 4 or unspecified
    if other or image.info.get("transparency") is not None:
        raise ImageError(f"{path}: {image.format} images of mode {image.mode} are not read in strips; use --no-strips, or save it as RGB")


def _make_damage_error(path: Path, error: BaseException) -> ImageError:
    return ImageError(f"{path}: damaged or truncated image: {take_last_line(error)}; get a whole copy")


def take_last_line(error: BaseException) -> str:
    """Of libvips's account, which has a line for each layer of it."""
    text = getattr(error, "detail", None) or getattr(error, "message", None) or explain(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"
