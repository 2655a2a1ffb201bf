"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from comdefend_cli.errors import ComdefendError, UsageError, reason


@contextmanager
def atomic(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and leaves no trace when it does not.

    The bytes go to a hidden file beside it, which is renamed at the end; a reader never
    sees half a file. A symbolic link is written through.

    Raises:
        UsageError: `path` is a folder, or it exists and `overwrite` is false, also when it came to be meanwhile.
        ComdefendError: it cannot be written (no such folder, no permission, disk full).
    """
    refuse_existing(path, overwrite=overwrite)
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _publish(part, target, overwrite)
        finally:
            with suppress(OSError):
                part.unlink()
    except FileExistsError as error:
        raise UsageError(f"{path}: already exists; use --overwrite to replace it") from error
    except OSError as error:
        raise ComdefendError(f"{path}: cannot write: {reason(error)}") from error


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` when `path` may not be written: a folder, or there and not to be replaced."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path}: already exists; use --overwrite to replace it")


def refuse_unwritable_folder(path: Path, *, room: int = 0) -> None:
    """Raise :class:`ComdefendError` when no file of `room` bytes can be made beside `path`: before long work, not after it."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(room))
    except OSError as error:
        raise ComdefendError(f"{path.parent}: cannot write into this folder: {reason(error)}") from error


def _publish(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
        return
    try:
        os.link(part, target)  # Unlike a rename, a link fails if the target came to be meanwhile.
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links.
        if target.exists():
            raise FileExistsError from None
        part.replace(target)


def write_atomically(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write bytes to `path` by :func:`atomic`."""
    with atomic(path, overwrite=overwrite) as file:
        file.write(data)
