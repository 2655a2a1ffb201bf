"""A mutant in the place of a module: what each process does at its start, so that the import of the module gives the mutant.

Imports little, since processes that tests start do it too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

#: The environment variable that names the file of :func:`write_place`.
VARIABLE = "COMDEFEND_MUTANT"


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
