"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.runtime.parts import open_part, sweep_parts, take_lock

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or write elsewhere"),
    errno.ENOENT: "make its folder first, or write elsewhere",
}


@contextmanager
def open_atomically(path: Path, *, overwrite: bool = False, sweep: bool = True) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and leaves no trace when it does not.

    The bytes go to a hidden file beside it, which is renamed at the end; a reader never
    sees half a file. A symbolic link is written through, and a file that is replaced passes on its permissions.
    What killed processes left of the same file is deleted, unless `sweep` is false: that looks through the folder.

    Raises:
        UsageError: `path` is a folder, or it exists and `overwrite` is false, also when it came to be meanwhile.
        ComdefendError: it cannot be written (no such folder, no permission, disk full).
    """
    refuse_existing(path, overwrite=overwrite)
    target = Path(os.path.realpath(path))
    if sweep:
        sweep_parts(target)
    try:
        with open_part(target) as (part, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            _publish(part, target, overwrite)
    except FileExistsError as error:
        raise UsageError(f"{path}: already exists; use --overwrite to replace it") from error
    except OSError as error:
        raise make_write_error(str(path), error) from error


def open_locked(path: Path, refusal: str) -> int:
    """The descriptor of a file that is made if need be, to append to; it is locked until it is closed, or the process ends.

    Raises:
        UsageError: another process has the lock; it says `refusal`.
        ComdefendError: the file cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        while True:
            descriptor = os.open(path, flags, 0o666)
            try:
                if take_lock(descriptor) is False:
                    raise UsageError(refusal)
                # Who held the lock before may just have removed the file.
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        raise make_write_error(str(path), error) from error


def make_write_error(what: str, error: OSError, fault: str = "cannot write") -> ComdefendError:
    """The error to raise where `what` could not be written: why, and what to do."""
    return ComdefendError(f"{what}: {fault}: {explain(error)}; {_REMEDIES.get(error.errno or 0, 'write elsewhere')}")


def find_weights_folder() -> Path:
    """The folder of the weights that ship: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "bundled_weights"
    return inside if inside.is_dir() else package.parent / "weights"


def refuse_absent(path: Path, problem: str) -> None:
    """Raise :class:`UsageError`, with the problem, where there is no file of that name, nor can be."""
    try:
        there = path.exists()
    except PermissionError:  # Who reads it will say so.
        return
    except OSError:  # A name that no file can have; before Python 3.12 it raises.
        there = False
    if not there:
        raise UsageError(f"{path}: {problem}")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` when `path` may not be written: a folder, or there and not to be replaced."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path}: already exists; use --overwrite to replace it")


def refuse_unwritable_folder(path: Path, *, room: int = 0) -> None:
    """Raise :class:`ComdefendError` when :func:`open_atomically` could make no file of `room` bytes for `path`: before long work."""
    import tempfile

    folder = Path(os.path.realpath(path)).parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(room))
    except OSError as error:
        raise make_write_error(str(folder if path.is_symlink() else path.parent), error, "cannot write into this folder") from error


def _publish(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        import shutil

        with suppress(OSError):  # It is not there, or on a file system without permissions.
            shutil.copymode(target, part)
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


def write_atomically(path: Path, data: bytes, *, overwrite: bool = False, sweep: bool = True) -> None:
    """Write bytes to `path` by :func:`open_atomically`."""
    with open_atomically(path, overwrite=overwrite, sweep=sweep) as file:
        file.write(data)
