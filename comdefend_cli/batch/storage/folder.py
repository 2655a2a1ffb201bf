"""A folder of this machine as a place of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

from comdefend_cli.batch.storage.listing import Found, make_read_error
from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.runtime.files import make_write_error, write_atomically
from comdefend_cli.runtime.names import folds_case
from comdefend_cli.runtime.parts import find_parts, shorten_name

if TYPE_CHECKING:
    from comdefend_cli.batch.storage.place import Place


class Folder:
    """A folder of this machine, or of a file system that all machines of a run see under one path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: set[str] = set()

    def __str__(self) -> str:
        return str(self.root)

    @property
    def address(self) -> str:
        """What names it wherever a process runs."""
        return str(self.root.absolute())

    def show(self, name: str) -> Path:
        """The path of a file, for people and reports."""
        return self.root / name

    def stamp(self, name: str) -> os.stat_result | None:
        """Of a file, or of what a link leads to; None if there is none."""
        return _stat(self.root / name)

    stamp_found = stamp

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            ImageError: it cannot be read.
        """
        with self.open(name) as file, _translate_errors(file.name):
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """A file, to look at its beginning; errors as of :meth:`read`."""
        with _translate_errors(self.root / name):
            return (self.root / name).open("rb")

    def write(self, name: str, data: bytes, *, overwrite: bool) -> os.stat_result:
        """Put a file into its place whole, making folders; its stamp. Errors as of :func:`comdefend_cli.runtime.open_atomically`."""
        target = self.root / name
        # Not the root: where somebody deletes it, a run must not make it again, without its journal.
        for folder in reversed(PurePath(name).parents[:-1]):
            (self.root / folder).mkdir(exist_ok=True)
        write_atomically(target, data, overwrite=overwrite, sweep=False)  # A folder may be long, and `sweep` did.
        return target.stat()

    def remove(self, name: str) -> None:
        """Delete a file that may have gone already."""
        (self.root / name).unlink(missing_ok=True)

    def find_beginning(self, prefix: str) -> list[str]:
        """Files directly in the folder whose names begin so."""
        return sorted(path.name for path in self.root.glob(f"{prefix}*"))

    def sweep(self, outputs: Iterable[str]) -> None:
        """Delete the half-written files that a killed process left of outputs it had begun."""
        names: dict[str, set[str]] = {}
        for output in outputs:
            parent, _, name = output.rpartition("/")
            names.setdefault(parent, set()).add(shorten_name(name))
        root = Path(os.path.realpath(self.root))
        for parent, begun in names.items():
            place = root / parent
            if os.path.realpath(place) != str(place) or not place.is_dir():  # Led elsewhere by a link or "..".
                continue
            for path in find_parts(place, begun):
                with suppress(OSError):
                    path.unlink()

    def folds_case(self) -> bool:
        """Whether its disk takes names that differ in case alone for one."""
        return folds_case(self.root)

    def find(self, wanted: Callable[[str], bool], out: Place, *, recursive: bool) -> Found:
        """Go through the folder, its subfolders too if `recursive`; hidden ones and the output folder are left out.

        Symbolic links to files are files as others; those to folders are not followed.

        Args:
            wanted: tells by a file's name whether to find it.
            out: where the outputs go.

        Raises:
            ComdefendError: the folder itself cannot be listed.
        """
        status = out.stamp("") if isinstance(out, Folder) else None
        own = status and _identify(status)
        found = Found()
        folders = [""]
        while folders:
            below = folders.pop()
            inner = []
            for entry in self._list(below, found):
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if _identify(entry.stat()) != own:
                        inner.append(name)
                elif wanted(entry.name) and _is_file(entry):
                    found.names.append(name)
                    _note_link(entry, found)
                else:
                    found.skipped += 1
            if recursive:
                folders.extend(reversed(inner))
            else:
                found.subfolders += len(inner)
        return found

    def refuse_output(self, out: Place, *, recursive: bool) -> None:
        """Raise :class:`UsageError` unless this is a folder, and `out` can be that of its outputs."""
        if not self.root.is_dir():
            fault = "is a file; use comdefend purify for a single image" if self.root.exists() else "no such folder"
            raise UsageError(f"{self}: {fault}")
        if not isinstance(out, Folder):
            return
        inside, outside = Path(os.path.realpath(self.root)), Path(os.path.realpath(out.root))
        if inside == outside or (out.root.exists() and out.root.samefile(self.root)):
            raise UsageError(f"{out}: is the folder of the images itself; name another with --out")
        if recursive and outside in inside.parents:
            raise UsageError(f"{out}: holds the folder of the images, so outputs could fall among them; name another with --out")

    def check_output(self, output: str, linked: set[tuple[int, int]]) -> os.stat_result | None:
        """What stands where an output is to go, or None.

        Raises:
            UsageError: a folder, a link, or one of the inputs (`linked`: device and inode of those that inputs link to) stands there, or
                the way there leads out of the folder.
        """
        self._refuse_linked_folder(output.rpartition("/")[0])
        there = _stat(self.root / output, follow=False)
        if there is not None:
            _refuse_unfit(self.root / output, there, linked)
        return there

    def refuse_unseen(self, name: str) -> None:
        """Raise :class:`ComdefendError` unless a file is there that the run's first process made, on whichever machine it runs."""
        if self.stamp(name) is None:
            raise ComdefendError(f"{self}: this machine does not see the output folder; use a path that all see, or a URL")

    @contextmanager
    def hold(self, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
        """The path at which a file that grows line by line lies meanwhile, and what makes the place have it as it is now.

        The folder is made if need be; if it is empty in the end it goes again, with the parents that were made for it.

        Raises:
            UsageError: it is no folder.
            ComdefendError: it cannot be made.
        """
        missing = [path for path in (self.root, *self.root.parents) if not os.path.lexists(path)]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{self}: is not a folder; name another with --out") from error
        except OSError as error:
            raise make_write_error(str(self), error, "cannot make this folder") from error
        try:
            yield self.root / name, lambda: None
        finally:
            with suppress(OSError):
                for path in missing:
                    path.rmdir()  # Fails, as it should, as soon as anything is in it.

    def _list(self, below: str, found: Found) -> list[os.DirEntry[str]]:
        """What is in a folder, sorted; a subfolder that cannot be listed is noted as such."""
        try:
            with os.scandir(self.root / below) as entries:
                return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            text = f"cannot list this folder: {explain(error)}"
            if not below:
                raise ComdefendError(f"{self}: {text}") from error
            found.unreadable.append((below, text))
            return []

    def _refuse_linked_folder(self, below: str) -> None:
        """What is written must land in the folder."""
        if below in self._seen:
            return
        self._seen.add(below)
        expected = Path(os.path.realpath(self.root)) / below
        if os.path.normcase(os.path.realpath(self.root / below)) != os.path.normcase(expected):
            raise UsageError(f"{self.root / below}: leads out of the output folder by a symbolic link; remove it, or use another --out")


@contextmanager
def _translate_errors(name: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise make_read_error(name, error) from error


def _stat(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except OSError:
        return None


def _identify(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A pipe or device is none. A link to nowhere is one, so that it is named as failed."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:
        return True


def _note_link(entry: os.DirEntry[str], found: Found) -> None:
    if entry.is_symlink():
        with suppress(OSError):
            found.linked.add(_identify(entry.stat()))


def _refuse_unfit(path: Path, there: os.stat_result, linked: set[tuple[int, int]]) -> None:
    if stat.S_ISDIR(there.st_mode):
        raise UsageError(f"{path}: is a folder where a file is to go; rename it, or use another --out")
    if not stat.S_ISREG(there.st_mode):
        raise UsageError(f"{path}: is a symbolic link or no plain file; remove it, or use another --out")
    if _identify(there) in linked:
        raise UsageError(f"{path}: an input is a link to it, and inputs are never changed; use another --out")
