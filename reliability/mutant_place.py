"""A mutant in the place of a module: what each process does at its start, so that the import of the module gives the mutant.

And how processes of mutants end. Imports little, since processes that tests start do it too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType

#: The environment variable that names the file of :func:`write_place`.
VARIABLE = "COMDEFEND_MUTANT"
#: Exit statuses: a test took too long; the code could not be put in place; no test was found.
TOO_LONG, MISPLACED, NO_TESTS = 77, 78, 5


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module that is mutated."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        code = self._code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return importlib.util.spec_from_file_location(name, self._path, loader=Loader(name, self._path))


def write_place(file: Path, name: str, path: Path, code: CodeType) -> None:
    """Say in `file` that module `name`, whose source is `path`, is to have that code."""
    file.write_bytes(marshal.dumps((name, str(path), code)))


def put_in_place(file: str | None) -> None:
    """From now on the import of the module that `file` tells of gives the mutant; nothing without a file."""
    if file:
        sys.meta_path.insert(0, _Finder(*marshal.loads(Path(file).read_bytes())))  # By write_place.


def end_group(child: int, seconds: float) -> int | None:
    """Wait for a process that leads a group, then end all of the group; its exit status, or None where it took longer."""
    ended, status = 0, 0
    limit = time.monotonic() + seconds
    while not ended and time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0 if ended else 0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)
