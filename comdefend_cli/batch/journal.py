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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from comdefend_cli.batch.storage.listing import Stamp
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.runtime.files import make_write_error, open_locked

STATE = ".comdefend-state.jsonl"
VERSION = 1


class Journal:
    """The open and locked state file of one output folder; its methods may be called from any thread.

    Outputs are named by their path below the folder, with forward slashes.
    In memory an output is its name and 16 bytes, so that a million of them fit.
    """

    def __init__(self, path: Path, put: Callable[[], None] = lambda: None) -> None:
        """Open and lock it, made if need be. What it says of outputs is known after :meth:`read`.

        Args:
            path: of the state file.
            put: called after all of it is on the disk, where its place is elsewhere.

        Raises:
            UsageError: another run works in its folder.
            ComdefendError: it cannot be made.
        """
        self._path, self._put = path, put
        refusal = f"{path.parent}: another comdefend purify-dir works in this folder; wait for it, or use another --out"
        self._descriptor = open_locked(path, refusal)
        self._lock = threading.Lock()
        self._entries: dict[str, bytes | None] = {}
        self._whole_lines = True

    def read(self) -> None:
        """Take in what earlier runs said; a torn line is passed over.

        Raises:
            UsageError: written by another version.
        """
        line = b"\n"
        with self._path.open("rb") as file:
            for line in file:
                try:
                    self._apply(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    continue  # Torn by a kill or a full disk: what it said is done again.
        self._whole_lines = line.endswith(b"\n")

    def knows(self, output: str) -> bool:
        """Whether an output of that name, if there is one, is ours."""
        return output in self._entries

    def is_finished(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> bool:
        """Whether `output` (now `after`) was finished from `source` (now `before`) with the settings of `key`."""
        done = self._entries.get(output)
        return done is not None and done == _make_fingerprint(source, _list_stamp(before), _list_stamp(after), key)

    def begin(self, outputs: list[str]) -> None:
        """Say, durably, that these outputs may appear: call it before they do.

        Raises:
            ComdefendError: the state file cannot be written.
        """
        with self._lock:
            self._append({"begin": outputs}, durable=True)
            self._entries.update(dict.fromkeys(outputs))

    def finish(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Say that `output` is whole; `before` is of the source when it was read, `after` of the output."""
        record = {"done": output, "from": source, "in": _list_stamp(before), "out": _list_stamp(after), "key": key}
        with self._lock:
            self._append(record)
            self._entries[output] = _make_fingerprint(source, _list_stamp(before), _list_stamp(after), key)

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
            self._put()
        except OSError as error:
            raise make_write_error(str(self._path), error) from error

    def list_leftovers(self) -> Iterator[str]:
        """Outputs that were begun and never said to be done: half-written files of theirs may be there."""
        return (name for name, done in self._entries.items() if done is None)

    def close(self) -> None:
        """Make all durable, and release the lock; a state file that nothing was written to is removed. Later writes raise.

        Raises:
            ComdefendError: its place does not take it; the lock is released all the same.
        """
        with self._lock:
            try:
                with suppress(OSError):  # What is not durable is done again by the next run.
                    if os.fstat(self._descriptor).st_size:
                        os.fsync(self._descriptor)
                    else:
                        self._path.unlink()
                self._put()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1  # The number may be another file's from now on.

    def _apply(self, record: dict[str, Any]) -> None:
        if record.get("comdefend_state", VERSION) != VERSION:
            raise UsageError(f"{self._path}: written by another version of comdefend; use another --out, or upgrade")
        if "begin" in record:
            self._entries.update(dict.fromkeys(map(str, record["begin"])))
        elif "drop" in record:
            self._entries.pop(record["drop"], None)
        elif "done" in record:
            self._entries[str(record["done"])] = _make_fingerprint(record["from"], record["in"], record["out"], record["key"])

    def _append(self, record: dict[str, Any], *, durable: bool = False) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            status = os.fstat(self._descriptor)
            if not (self._path.exists() and os.path.samestat(status, self._path.stat())):
                # With the output folder, say; the next run would take what is written now for another's.
                raise ComdefendError(f"{self._path}: was removed while the run went on; run again")
            if status.st_size == 0:
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
            raise make_write_error(str(self._path), error) from error


@contextmanager
def open_journal(place: Place) -> Iterator[Journal]:
    """The journal of an output folder, which is made if need be; refused work leaves neither behind.

    Raises:
        UsageError: `place` is no folder, or another run works in it.
        ComdefendError: it cannot be made or written to.
    """
    with place.hold(STATE) as (path, put):
        journal = Journal(path, put)
        try:
            journal.read()
            yield journal
        finally:
            journal.close()


def _list_stamp(stat: Stamp) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns]


def _make_fingerprint(source: str, before: list[int], after: list[int], key: str) -> bytes:
    text = json.dumps([source, before, after, key]).encode()
    return hashlib.blake2b(text, digest_size=16).digest()
