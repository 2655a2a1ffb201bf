"""A file of decoded rows, beside the image that is made of it in the end: it holds what memory is not to hold."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from comdefend_cli.batch.large_image import EXTRA, LargeImage, take_last_line
from comdefend_cli.errors import ComdefendError
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import make_write_error
from comdefend_cli.runtime.parts import open_part, sweep_parts

#: What is written, and how: the same fidelity as of `imaging.writing.SAVE_OPTIONS`.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("pngsave", {"compression": 4, "filter": "all"}),
    "TIFF": ("tiffsave", {"compression": "deflate", "predictor": "horizontal"}),
}
#: Bytes from which a TIFF file needs 64-bit offsets.
_BIG_TIFF = 3 * 2**30
#: Bytes of a strip in the file of decoded rows, which libvips reads one at a time.
_TIFF_STRIP = 2**20


@contextmanager
def open_rows_file(target: Path, image: LargeImage) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """The path of a hidden file beside the target, and what writes rows of `image` into it; it goes when this is left.

    Raises:
        ComdefendError: it cannot be written; what else is raised meanwhile is left as it is.
    """
    folder = Path(os.path.realpath(target)).parent
    sweep_parts(folder / target.name)  # It may be of many gigabytes.
    size = image.width * image.height * image.bands

    @contextmanager
    def writing() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise make_write_error(str(target), error, f"cannot write {size / 1e9:.1f} GB of decoded rows beside it") from error

    def put(rows: Any) -> None:
        with writing():
            raw.write(rows)
            raw.flush()

    with ExitStack() as stack:
        with writing():
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path, raw = stack.enter_context(open_part(folder / target.name))
        put(_make_tiff_head(image.width, image.height, image.bands))
        yield str(path), put


def encode_rows(image: LargeImage, raw: str, part: str, format_name: str, *, strip: bool) -> None:
    """Encode the decoded rows of the file `raw` into the file `part`, with ICC profile, EXIF and XMP of `image` unless `strip`.

    Raises:
        ComdefendError: it cannot be written.
    """
    pyvips = require("pyvips", extra=EXTRA)
    operation, options = WRITERS[format_name]
    if format_name == "TIFF":
        options = {**options, "bigtiff": image.width * image.height * image.bands > _BIG_TIFF}
    try:
        rows = pyvips.Image.tiffload(raw, access="sequential")
        rows = rows.copy(interpretation="b-w" if image.gray else "srgb")
        keep = 0  # Left to itself, libvips writes an EXIF block of its own.
        kinds = pyvips.enums.ForeignKeep
        for name, block, kind in (
            ("icc-profile-data", image.icc, kinds.ICC),
            ("exif-data", image.exif, kinds.EXIF),
            ("xmp-data", image.xmp, kinds.XMP),
        ):
            if block and not strip:
                rows.set_type(pyvips.GValue.blob_type, name, block)
                keep |= kind
        getattr(rows, operation)(part, keep=keep, **options)
    except pyvips.Error as error:
        raise ComdefendError(f"cannot write the purified image: {take_last_line(error)}; free some space, or write elsewhere") from error


def _make_tiff_head(width: int, height: int, bands: int) -> bytes:
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
