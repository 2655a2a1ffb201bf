"""Names that a disk takes for one: "A.png" and "a.png" on most of macOS' and Windows' disks, and on those of theirs that Linux reads."""

from __future__ import annotations

import os
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path


def choose_fold(names: Collection[str], ask: Callable[[], bool]) -> Callable[[str], str]:
    """What maps names of files to one text where they are one file.

    Args:
        names: of the files; where no two are alike but for case, nothing is asked.
        ask: whether the files' folder takes names that differ in case alone for one, as :func:`folds_case` tells.
    """
    if len({_fold(name) for name in names}) == len(names):
        return str
    return _fold if ask() else _compose if sys.platform == "darwin" else str


def folds_case(folder: Path) -> bool:
    """Whether the disk of a folder, which need not be there yet, takes names that differ in case alone for one.

    A file is made there for a moment and looked for under another case; where none can be made, it goes by the operating system.
    """
    try:
        there = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir()), Path())
        with tempfile.NamedTemporaryFile(prefix=".comdefend-Case-", dir=there) as file:
            path = Path(file.name)
            return os.path.lexists(path.with_name(path.name.swapcase()))
    except OSError:  # Whoever writes there will say it.
        return sys.platform in ("darwin", "win32")


def _fold(name: str) -> str:
    return _compose(name).casefold()


def _compose(name: str) -> str:
    """Letters with accents as one character each: macOS takes both ways to write them for one."""
    return unicodedata.normalize("NFC", name)
