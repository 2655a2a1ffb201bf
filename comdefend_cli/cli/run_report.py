"""The report of `comdefend purify-dir`: one JSON record an image, as lines."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.files import open_atomically, refuse_existing, refuse_unwritable_folder

if TYPE_CHECKING:
    from comdefend_cli.batch.engine import Result

#: Bytes of a report that are kept in memory before it is finished.
_SPOOL = 2**20


@contextmanager
def open_report(path: Path | None, out: Path, *, overwrite: bool) -> Iterator[Callable[[Result], None]]:
    """A function that takes results into a report, which is written when the block ends, also by Ctrl-C."""
    if path is None:
        yield lambda result: None
        return
    _refuse_report(path, overwrite=overwrite)
    if path.parent.exists() or path.parent.resolve() != out.resolve():  # The output folder will be made.
        refuse_unwritable_folder(path)
    with tempfile.SpooledTemporaryFile(_SPOOL) as lines:
        yield lambda result: _put(lines, result)
        lines.seek(0)
        with suppress(OSError):  # Writing will say it.
            path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, overwrite=True) as file:
            shutil.copyfileobj(lines, file)


def _put(lines: IO[bytes], result: Result) -> None:
    from comdefend_cli import __version__

    record = {
        "comdefend": __version__,
        "input": str(result.input),
        "output": str(result.output),
        "status": result.status,
        "reason": result.reason,
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 4),
        "notices": result.notices,
    }
    lines.write(json.dumps(record).encode() + b"\n")


def _refuse_report(path: Path, *, overwrite: bool) -> None:
    """A report replaces a report, or nothing; never an image."""
    from comdefend_cli.batch.journal import STATE
    from comdefend_cli.imaging.formats import list_suffixes

    refuse_existing(path, overwrite=True)
    if path.suffix.lower() in list_suffixes(writable=False) or path.name == STATE:
        raise UsageError(f"{path}: a report is lines of JSON; give --report a name like results.jsonl")
    if path.exists() and not overwrite and not _is_report(path):
        raise UsageError(f"{path}: already exists and is not a report of comdefend; use --overwrite to replace it")


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(_SPOOL)
        return not first or "comdefend" in dict(json.loads(first))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
