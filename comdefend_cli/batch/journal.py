"""The state file of an output folder: which files in it are ours, and from what they were finished.

Appended to, one JSON object a line, so that a killed run loses at most its last line:

    {"comdefend_state": 1}
    {"begin": ["a/b.png"]}     these outputs may appear from now on, and are ours
    {"done": "a/b.png", "from": "a/b.tif", "in": [bytes, mtime_ns], "out": [bytes, mtime_ns], "key": "..."}
    {"drop": "a/b.png"}        it failed and is not there: whatever appears under that name is not ours
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from comdefend_cli.batch.storage import Folder, Place, Stamp, Url
from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.files import make_write_error

STATE = ".comdefend-state.jsonl"
VERSION = 1


class Journal:
    """The open and locked state file of one output folder; its methods may be called from any thread.

    Outputs are named by their path below the folder, with forward slashes.
    In memory an output is its name and 16 bytes, so that a million of them fit.
    """

    def __init__(self, folder: Path, descriptor: int, store: Url | None = None) -> None:
        self._folder = folder
        self._store = store  # Where nothing can be appended to: the whole file is put there now and then.
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._entries: dict[str, bytes | None] = {}
        self._whole_lines = True

    def read(self) -> None:
        """Take in what earlier runs said; a torn line is passed over.

        Raises:
            UsageError: written by another version.
        """
        path = self._folder / STATE
        line = b"\n"
        with path.open("rb") as file:
            for line in file:
                try:
                    self._apply(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    continue  # Torn by a kill or a full disk: what it said is done again.
        self._whole_lines = line.endswith(b"\n")

    def knows(self, output: str) -> bool:
        """Whether an output of that name, if there is one, is ours."""
        return output in self._entries

    def finished(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> bool:
        """Whether `output` (now `after`) was finished from `source` (now `before`) with the settings of `key`."""
        done = self._entries.get(output)
        return done is not None and done == _fingerprint(source, _stamp(before), _stamp(after), key)

    def begin(self, outputs: list[str]) -> None:
        """Say, durably, that these outputs may appear: call it before they do.

        Raises:
            ComdefendError: the state file cannot be written.
        """
        with self._lock:
            self._append({"begin": outputs}, durable=True)
            self._entries.update(dict.fromkeys(outputs))

    def done(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Say that `output` is whole; `before` is of the source when it was read, `after` of the output."""
        record = {"done": output, "from": source, "in": _stamp(before), "out": _stamp(after), "key": key}
        with self._lock:
            self._append(record)
            self._entries[output] = _fingerprint(source, _stamp(before), _stamp(after), key)

    def drop(self, output: str) -> None:
        """Say that a begun output did not come to be."""
        with self._lock:
            self._append({"drop": output})
            self._entries.pop(output, None)

    def sync(self) -> None:
        """Make all that was said durable.

        Raises:
            ComdefendError: it cannot be written.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise make_write_error(str(self._folder / STATE), error) from error
        if self._store is not None and os.fstat(self._descriptor).st_size:
            self._store.write(STATE, (self._folder / STATE).read_bytes(), overwrite=True)

    def sweep(self) -> None:
        """Delete the half-written files that a killed run left of outputs it had begun."""
        Folder(self._folder).sweep(name for name, done in self._entries.items() if done is None)

    def close(self) -> None:
        """Release the lock; a state file that nothing was written to is removed. Later writes raise."""
        if self._store is not None:
            self.sync()
        with self._lock, suppress(OSError):
            if os.fstat(self._descriptor).st_size == 0:
                (self._folder / STATE).unlink()
            else:
                os.fsync(self._descriptor)
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # The number may be another file's from now on.

    def _apply(self, record: dict[str, Any]) -> None:
        if record.get("comdefend_state", VERSION) != VERSION:
            raise UsageError(f"{self._folder / STATE}: written by another version of comdefend; use another --out, or upgrade")
        if "begin" in record:
            self._entries.update(dict.fromkeys(map(str, record["begin"])))
        elif "drop" in record:
            self._entries.pop(record["drop"], None)
        elif "done" in record:
            self._entries[str(record["done"])] = _fingerprint(record["from"], record["in"], record["out"], record["key"])

    def _append(self, record: dict[str, Any], *, durable: bool = False) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            if os.fstat(self._descriptor).st_size == 0:
                line = json.dumps({"comdefend_state": VERSION}).encode() + b"\n" + line
            elif not self._whole_lines:
                line = b"\n" + line
            # Until the write is known to be whole; a full disk takes a part of it.
            self._whole_lines = False
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._whole_lines = True
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            raise make_write_error(str(self._folder / STATE), error) from error


@contextmanager
def opened(place: Place | Path) -> Iterator[Journal]:
    """The journal of an output folder, which is made if need be; refused work leaves neither behind.

    A folder is locked for the run. A store cannot be: that no two runs work in one at a time is for the person to see to.

    Raises:
        UsageError: `place` is no folder, or another run works in it.
        ComdefendError: it cannot be made or written to.
    """
    if isinstance(place, Url):
        with tempfile.TemporaryDirectory(prefix="comdefend-") as name:
            if STATE in place.listing:
                (Path(name) / STATE).write_bytes(place.read(STATE))
            with _opened(Path(name), place) as journal:
                yield journal
    else:
        with _opened(place.root if isinstance(place, Folder) else place) as journal:
            yield journal


@contextmanager
def _opened(folder: Path, store: Url | None = None) -> Iterator[Journal]:
    made = _make(folder)
    try:
        journal = Journal(folder, _open_locked(folder), store)
        try:
            journal.read()
            yield journal
        finally:
            journal.close()
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()  # Fails, as it should, as soon as anything is in it.


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; those that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: is not a folder; name another with --out") from error
    except OSError as error:
        raise make_write_error(str(folder), error, "cannot make this folder") from error
    return missing


def _open_locked(folder: Path) -> int:
    path = folder / STATE
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        while True:
            descriptor = os.open(path, flags, 0o666)
            if not _lock(descriptor):
                os.close(descriptor)
                raise UsageError(f"{folder}: another comdefend purify-dir works in this folder; wait for it, or use another --out")
            # The run that held the lock before may just have removed the file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
            os.close(descriptor)
    except OSError as error:
        raise make_write_error(str(path), error) from error


def _lock(descriptor: int) -> bool:
    """Take the lock, which ends with the process however it ends; False if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        return True
    return True


def _stamp(stat: Stamp) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns]


def _fingerprint(source: str, before: list[int], after: list[int], key: str) -> bytes:
    text = json.dumps([source, before, after, key]).encode()
    return hashlib.blake2b(text, digest_size=16).digest()
