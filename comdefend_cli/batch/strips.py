"""Images too large to be held in memory: from file to file in strips of rows, read and written by libvips (extra `[large]`).

    with large.opened(path) as image:
        large.purify(purifier, image, target)

A strip goes through the network with 18 more rows above and below, as far as the image has them, and only its own rows are kept:
the result is that of the whole image.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from comdefend_cli.errors import ComdefendError, ImageError, UsageError, reason
from comdefend_cli.imaging.formats import find_format
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS
from comdefend_cli.imaging.metadata import read_exif
from comdefend_cli.imaging.reading import open_image
from comdefend_cli.inference.purifier import DEFAULT_TILE, Purifier
from comdefend_cli.inference.tiles import PATCH
from comdefend_cli.network.model import RADIUS
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import make_write_error, open_atomically, refuse_existing, shorten_name

EXTRA = "large"
#: What is read, by Pillow's names, and libvips's operations that do it.
READERS = {"PNG": "pngload", "TIFF": "tiffload", "JPEG": "jpegload"}
#: What is written, and how: the same fidelity as of `imaging.writing.SAVE_OPTIONS`.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("pngsave", {"compression": 4, "filter": "all"}),
    "TIFF": ("tiffsave", {"compression": "deflate", "predictor": "horizontal"}),
}
#: Pillow's modes whose pixels need no more than a cut to 8 bits.
MODES = {"1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
#: Bytes from which a TIFF file needs 64-bit offsets.
_BIG_TIFF = 3 * 2**30
#: Bytes of a strip in the file of decoded rows, which libvips reads one at a time, and bytes that are read from it at once.
_TIFF_STRIP = 2**20
_READ = 2**20
#: Pixels of a strip, of which there are two copies and its tiles in float32, and rows that it has all the same: with fewer, much of a wide
#: image would be computed twice.
STRIP_PIXELS = 2**22
STRIP_ROWS = 256


@dataclass
class LargeImage:
    """An image file whose rows are read from top to bottom.

    Attributes:
        path: of the file.
        width, height: upright, in pixels.
        bands: channels with that of transparency, 1 to 4.
        icc, exif: blocks to hand on, or None.
        notices: what is changed in reading, one sentence each.
    """

    path: Path
    width: int
    height: int
    bands: int
    icc: bytes | None
    exif: bytes | None
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
            ImageError: the file is damaged.
        """
        pyvips = require("pyvips", extra=EXTRA)
        step = max(1, _READ // (self.width * self.bands))  # libvips holds several copies of what it is asked for at once.
        try:
            if self._region is None:
                self._region = pyvips.Region.new(self._load())
            for start in range(0, len(taken), step):
                part = taken[start : start + step]
                data = self._region.fetch(0, self._next + start, self.width, len(part))
                part[:] = np.frombuffer(data, np.uint8).reshape(part.shape)
        except pyvips.Error as error:
            raise _damaged(self.path, error) from error
        self._next += len(taken)


@contextmanager
def opened(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[LargeImage]:
    """An image file, of which only the header is read yet.

    Raises:
        ImageError: missing, not an image, over the limit, or of a kind that is not read in strips.
        UsageError: libvips is not installed.
    """
    require("pyvips", extra=EXTRA)
    with open_image(path, max_megapixels=max_megapixels) as image:
        _refuse_other_kinds(path, image)
        notices: list[str] = []
        exif, turned = read_exif(image, notices)
        if getattr(image, "n_frames", 1) > 1:
            notices.append(f"only the first of {image.n_frames} frames is purified")  # type: ignore[attr-defined]
        kind, icc = READERS[image.format or ""], image.info.get("icc_profile")
    load = _loader(path, kind, turned=turned, notices=notices)
    found = load()
    if icc and icc[16:20] != (b"GRAY" if found.bands < 3 else b"RGB "):
        notices.append("its ICC profile is for another kind of colour and was left out")
        icc = None
    yield LargeImage(path, found.width, found.height, found.bands, icc, exif, notices, load)


def reads(path: Path) -> bool:
    """Whether a file is of a kind that :func:`opened` reads, by its header."""
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


def purify(
    purifier: Purifier,
    image: LargeImage,
    target: Path,
    *,
    strip: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Purify a file into another, whole or not at all.

    Args:
        purifier: what purifies; the result is that of the whole image, noise included.
        target: .png or .tiff.
        strip: leave ICC profile and EXIF out.
        overwrite: replace `target`.
        progress: called with the number of pixels done since the last call.

    Returns:
        The mean square difference to the input, in levels of 8 bits.

    Raises:
        UsageError: `target` is there and `overwrite` is false, or is of another format.
        ImageError: `image` is damaged.
        ComdefendError: `target` cannot be written.
    """
    format_name = find_format(target)
    if format_name not in WRITERS:
        raise UsageError(f"{target}: an image in strips is written as .png or .tiff")
    refuse_existing(target, overwrite=overwrite)
    error = 0.0
    with _rows_file(target, image) as raw:
        raw.write(_tiff_head(image.width, image.height, image.bands))
        for before, after in strips(purifier, image):
            raw.write(after.data)
            error += _squares(before, after[..., : image.channels])
            if progress:
                progress(after.shape[0] * after.shape[1])
            del before, after  # Else they stay while the next strip is computed.
        raw.flush()
        with open_atomically(target, overwrite=overwrite) as file:
            _save(image, raw.name, file.name, format_name, strip=strip)
    return error / (image.width * image.height * image.channels)


def _squares(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of squared differences of two strips, row by row, since wider numbers of a whole strip would take the most memory of all."""
    return float(sum(int(np.square(row.astype(np.int32) - other).sum()) for row, other in zip(a, b, strict=True)))


@contextmanager
def _rows_file(target: Path, image: LargeImage) -> Iterator[Any]:
    """A hidden file beside the target for the decoded rows: it holds what memory is not to hold until all of it is encoded.

    Raises:
        ComdefendError: it cannot be written.
    """
    folder = Path(os.path.realpath(target)).parent
    size = image.width * image.height * image.bands
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.NamedTemporaryFile(prefix=f".{shorten_name(target.name)}.", suffix=".part", dir=folder) as raw:
            yield raw
    except OSError as error:
        raise make_write_error(str(target), error, f"cannot write {size / 1e9:.1f} GB of decoded rows beside it") from error


def strips(purifier: Purifier, image: LargeImage) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Strips from top to bottom, uint8: the colours as they were (rows, width, channels), and purified with alpha (rows, width, bands)."""
    halo = RADIUS if purifier.settings.tiling == "exact" else 0
    rows = _rows(purifier, image.width, halo)
    window, top = np.empty((0, image.width, image.bands), np.uint8), 0
    for start in range(0, image.height, rows):
        stop, bottom = min(start + rows, image.height), min(start + rows + halo, image.height)
        kept = window[max(start - halo - top, 0) :].copy()
        top = max(start - halo, 0)
        window = np.empty((bottom - top, image.width, image.bands), np.uint8)
        window[: len(kept)] = kept
        image.read(window[len(kept) :])
        core = slice(start - top, stop - top)
        yield window[core, :, : image.channels], _purified(purifier, window, top, core, image.channels)


def _purified(purifier: Purifier, window: np.ndarray, top: int, core: slice, channels: int) -> np.ndarray:
    """The rows `core` of a window that begins at an image's row `top`, purified, with alpha; uint8 (rows, width, bands), contiguous."""
    colors = torch.from_numpy(window[..., :channels]).permute(2, 0, 1)[None]
    cleaned = purifier.purify(colors, top=top)[0, :, core].permute(1, 2, 0).numpy()
    alpha = window[core, :, channels:]
    return np.concatenate([cleaned, alpha], 2) if alpha.size else np.ascontiguousarray(cleaned)


def _rows(purifier: Purifier, width: int, halo: int) -> int:
    """Rows of a strip: with its halo as high as a tile, so that no row is computed more often than in the whole image, or what fits."""
    device = next(purifier.parameters()).device
    tile = purifier.settings.tile or DEFAULT_TILE[device.type]
    rows = max(min(tile - 2 * halo, max(STRIP_PIXELS // width, STRIP_ROWS)), 2 * RADIUS)
    return rows if halo else max(rows // PATCH, 1) * PATCH


def _tiff_head(width: int, height: int, bands: int) -> bytes:
    """What stands before the rows in an uncompressed TIFF with 64-bit offsets, read piece by piece. Raw pixels libvips would map whole."""
    rows = max(1, _TIFF_STRIP // (width * bands))
    starts = range(0, height, rows)
    sizes = [min(rows, height - start) * width * bands for start in starts]
    short, long, long8 = 3, 4, 16
    alpha = bands in (2, 4)
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8] * bands),
        (259, short, [1]),  # Not compressed.
        (262, short, [1 if bands < 3 else 2]),  # Black is zero, or RGB.
        (273, long8, [0] * len(sizes)),  # Where strips begin; known once the head's own length is.
        (277, short, [bands]),
        (278, long, [rows]),
        (279, long8, sizes),
        *([(338, short, [2])] if alpha else []),  # Transparency that colours are not multiplied with.
    ]
    begin = 16 + 8 + 20 * len(tags) + 8
    head = begin + 2 * 8 * len(sizes)
    places = [head + start * width * bands for start in starts]
    entries, arrays = b"", b""
    for tag, kind, values in tags:
        values = places if tag == 273 else values
        data = struct.pack(f"<{len(values)}{ {short: 'H', long: 'I', long8: 'Q'}[kind] }", *values)
        if tag in (273, 279) and len(values) > 1:
            data, arrays = struct.pack("<Q", begin + len(arrays)), arrays + data
        entries += struct.pack("<HHQ", tag, kind, len(values)) + data.ljust(8, b"\0")
    whole = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(tags)) + entries + bytes(8) + arrays
    return whole.ljust(head, b"\0")


def _save(source: LargeImage, raw: str, part: str, format_name: str, *, strip: bool) -> None:
    """Encode the decoded rows of `raw` into `part`."""
    pyvips = require("pyvips", extra=EXTRA)
    operation, options = WRITERS[format_name]
    if format_name == "TIFF":
        options = {**options, "bigtiff": source.width * source.height * source.bands > _BIG_TIFF}
    try:
        image = pyvips.Image.tiffload(raw, access="sequential")
        image = image.copy(interpretation="b-w" if source.gray else "srgb")
        for name, block in (("icc-profile-data", source.icc), ("exif-data", source.exif)):
            if block and not strip:
                image.set_type(pyvips.GValue.blob_type, name, block)
        # Left to itself, libvips writes an EXIF block of its own.
        keep = "none" if strip else "all" if source.exif else "icc"
        getattr(image, operation)(part, keep=keep, **options)
    except pyvips.Error as error:
        raise ComdefendError(f"cannot write the source: {_last_line(error)}; free some space, or write elsewhere") from error


def _loader(path: Path, kind: str, *, turned: bool, notices: list[str]) -> Callable[[], Any]:
    """A function that opens the file in libvips anew, upright and as 8 bits; read from top to bottom without being held.

    An image that its EXIF turns cannot be read so: libvips decodes it into a file of the system's folder for such.
    """
    pyvips = require("pyvips", extra=EXTRA)

    def load() -> Any:
        try:
            image = getattr(pyvips.Image, kind)(str(path), access="random" if turned else "sequential", fail_on="error")
            image = image.autorot() if turned else image
            return _eight_bits(path, image)
        except pyvips.Error as error:
            raise _damaged(path, error) from error

    if load().get("comdefend-deep"):
        notices.append("16-bit samples are reduced to 8 bits: the code has 12 bits a pixel")
    return load


def _eight_bits(path: Path, image: Any) -> Any:
    """As :func:`comdefend_cli.imaging.reading.read_image` does it: grey rounded to the nearest level, colour cut."""
    deep = image.format == "ushort"
    if image.format not in ("uchar", "ushort") or image.bands > 4:
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


def _damaged(path: Path, error: BaseException) -> ImageError:
    return ImageError(f"{path}: damaged or truncated image: {_last_line(error)}; get a whole copy")


def _last_line(error: BaseException) -> str:
    """Of libvips's account, which has a line for each layer of it."""
    text = getattr(error, "detail", None) or getattr(error, "message", None) or reason(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"
