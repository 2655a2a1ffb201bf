"""Half-written files: hidden, beside what they become, and locked while they are written, so that those of killed processes can be told.

Locks end with the process that holds them, however it ends. Where there are none (Windows, some network drives), what is left stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


@contextmanager
def open_part(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new hidden file beside `target` that only this process writes; it goes when this is left, unless it was renamed.

    Raises:
        OSError: it cannot be made.
    """
    # Named before it is there, so that whatever ends the work, at any moment, leaves none.
    part = target.with_name(f".{shorten_name(target.name)}.{os.urandom(4).hex()}.part")
    lock = -1
    try:
        while True:
            file = part.open("xb")
            lock = os.dup(file.fileno()) if os.name == "posix" else -1  # An open file cannot be renamed elsewhere.
            if lock < 0 or take_lock(lock, wait=True) is None or part.exists():
                break
            file.close()  # Another process took it for abandoned before it was locked.
            os.close(lock)
        try:
            yield part, file
        finally:
            with suppress(OSError):  # What could not be written is tried again by closing.
                file.close()
    finally:
        with suppress(OSError):
            part.unlink()
        if lock >= 0:
            os.close(lock)


def find_parts(folder: Path, names: Container[str]) -> Iterator[Path]:
    """The half-written files in a folder of files of such names, each shortened by :func:`shorten_name`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name)
            if match and match[1] in names:
                yield folder / entry.name


def sweep_parts(target: Path) -> None:
    """Delete the half-written files that killed processes left of `target`; those of living ones stay."""
    with suppress(OSError):
        for path in find_parts(target.parent, {shorten_name(target.name)}):
            with suppress(OSError):
                _remove_abandoned(path)


def shorten_name(name: str) -> str:
    """The first 100 bytes of a file's name, so that what is added to it stays within a file system's 255."""
    return os.fsencode(name)[:100].decode(errors="ignore")


def take_lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file; whether it was free, or None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows.
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        return None
    return True


def _remove_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if take_lock(descriptor):
            path.unlink()
    finally:
        os.close(descriptor)
