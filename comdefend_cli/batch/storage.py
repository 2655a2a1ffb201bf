"""Where images lie and go: a folder of this machine, or an fsspec URL (object stores and the like), by one set of methods.

Names are paths below the place, with forward slashes.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote

from comdefend_cli.errors import ComdefendError, ImageError, UsageError, reason
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import make_write_error, shorten_name, write_atomically

#: Stores in which a file appears whole or not at all, so that it needs no other name before it is finished.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
#: What object stores call a file's time of change.
_COARSE = ("LastModified", "last_modified", "updated")
#: What `open_atomically` calls a file that is not whole yet.
_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


class Stamp(Protocol):
    """What tells a file's versions apart: size in bytes and time of change in nanoseconds, or what stands for that."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """Nanoseconds, or a number made of the store's own mark of the version."""


class Folder:
    """A folder of this machine, or of a file system that all machines of a run see under one path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: set[str] = set()

    def __str__(self) -> str:
        return str(self.root)

    def show(self, name: str) -> Path:
        """The path of a file, for people and reports."""
        return self.root / name

    def stamp(self, name: str) -> os.stat_result | None:
        """Of a file, or of what a link leads to; None if there is none."""
        return _status(self.root / name)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.root / name, error) from error

    def open(self, name: str) -> BinaryIO:
        """A file, to look at its beginning; errors as of :meth:`read`."""
        try:
            return (self.root / name).open("rb")
        except OSError as error:
            raise _unreadable(self.root / name, error) from error

    def write(self, name: str, data: bytes, *, overwrite: bool) -> os.stat_result:
        """Put a file into its place whole, making folders; its stamp. Errors as of :func:`comdefend_cli.runtime.files.open_atomically`."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data, overwrite=overwrite)
        return target.stat()

    def remove(self, name: str) -> None:
        """Delete a file that may have gone already."""
        (self.root / name).unlink(missing_ok=True)

    def beginning_with(self, prefix: str) -> list[str]:
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
            for path in place.iterdir():
                match = _PART.fullmatch(path.name)
                if match and match[1] in begun:
                    with suppress(OSError):
                        path.unlink()

    def taken(self, output: str, linked: set[tuple[int, int]]) -> os.stat_result | None:
        """What stands where an output is to go, or None.

        Raises:
            UsageError: a folder, a link, or one of the inputs (`linked`: device and inode of those that inputs link to) stands there, or
                the way there leads out of the folder.
        """
        self._refuse_linked_folder(output.rpartition("/")[0])
        there = _status(self.root / output, follow=False)
        if there is not None:
            _refuse_unfit(self.root / output, there, linked)
        return there

    def _refuse_linked_folder(self, below: str) -> None:
        """What is written must land in the folder."""
        if below in self._seen:
            return
        self._seen.add(below)
        expected = Path(os.path.realpath(self.root)) / below
        if os.path.normcase(os.path.realpath(self.root / below)) != os.path.normcase(expected):
            raise UsageError(f"{self.root / below}: leads out of the output folder by a symbolic link; remove it, or use another --out")


class UrlStamp:
    """A stamp made of what a store says of a file: its ETag or the like, or else its time of change.

    An object store's times are taken to the second: some tell more of it in a listing than of a single file.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self.st_size = int(about.get("size") or 0)
        told = {key: about[key] for key in ("ETag", "etag", "md5Hash", "mtime", *_COARSE, "created") if about.get(key) is not None}
        key, mark = next(iter(told.items()), ("", 0))
        self.st_mtime_ns = _as_number(mark.replace(microsecond=0) if key in _COARSE and isinstance(mark, datetime) else mark)


class Url:
    """A place by an fsspec URL, "s3://bucket/images" say; its listing is read once, when first needed.

    Raises:
        UsageError: no such protocol, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        fsspec = require("fsspec", extra="ray")
        try:
            self.fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{url}: {reason(error)}") from error
        except OSError as error:
            raise ComdefendError(f"{url}: cannot connect: {reason(error)}") from error
        self._root: str = root.rstrip("/")
        self._listing: dict[str, UrlStamp] | None = None

    def __str__(self) -> str:
        return self.url

    def show(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    @property
    def listing(self) -> dict[str, UrlStamp]:
        """All files, sorted by name.

        Raises:
            ComdefendError: the store does not answer.
        """
        if self._listing is None:
            there: dict[str, dict[str, Any]] = {}
            # Not by `exists`, for which whatever goes wrong means no.
            with suppress(FileNotFoundError), _answering(self.url, "cannot list", OSError):
                there = self.fs.find(self._root, detail=True)
            cut = len(self._root) + 1
            self._listing = {path[cut:]: UrlStamp(about) for path, about in sorted(there.items()) if len(path) > cut}
        return self._listing

    def stamp(self, name: str) -> UrlStamp | None:
        """Of a file; None if there is none.

        Raises:
            ComdefendError: the store does not answer.
        """
        try:
            with _answering(self.show(name), "cannot look it up", OSError):
                return UrlStamp(self.fs.info(self._path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            with _answering(self.show(name), "cannot read"):
                return bytes(self.fs.cat_file(self._path(name)))
        except OSError as error:
            raise _unreadable(self.show(name), error) from error

    def open(self, name: str) -> BinaryIO:
        """A file, to look at its beginning; errors as of :meth:`read`."""
        try:
            with _answering(self.show(name), "cannot read"):
                return cast(BinaryIO, self.fs.open(self._path(name), "rb"))
        except OSError as error:
            raise _unreadable(self.show(name), error) from error

    def write(self, name: str, data: bytes, *, overwrite: bool) -> UrlStamp:
        """Put a file into its place whole; its stamp.

        Raises:
            UsageError: it is there and `overwrite` is false.
            ComdefendError: it cannot be written.
        """
        path = self._path(name)
        try:
            with _answering(self.show(name), "cannot write"):
                if not overwrite and self.stamp(name) is not None:
                    raise UsageError(f"{self.show(name)}: already exists; use --overwrite to replace it")
                self._put(path, data)
                return UrlStamp(self.fs.info(path))
        except OSError as error:
            raise make_write_error(self.show(name), error) from error

    def remove(self, name: str) -> None:
        """Delete a file that may have gone already."""
        try:
            with _answering(self.show(name), "cannot delete"):
                self.fs.rm_file(self._path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise make_write_error(self.show(name), error, "cannot delete") from error

    def beginning_with(self, prefix: str) -> list[str]:
        """Files directly in the place whose names begin so."""
        try:
            with _answering(self.url, "cannot list", OSError):
                self.fs.invalidate_cache(self._root)
                paths = self.fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in map(posixpath.basename, paths) if name.startswith(prefix))

    def below(self, other: Place) -> str | None:
        """The name of this place below another: "" where it is the same place, None where it is elsewhere."""
        if not isinstance(other, Url) or type(other.fs) is not type(self.fs):
            return None
        if self._root == other._root:
            return ""
        return self._root.removeprefix(f"{other._root}/") if self._root.startswith(f"{other._root}/") else None

    def sweep(self, outputs: Iterable[str]) -> None:
        """Nothing: stores show a file once it is whole."""

    def taken(self, output: str, linked: set[tuple[int, int]]) -> UrlStamp | None:
        """What stood where an output is to go when the place was listed, or None."""
        return self.listing.get(output)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, path: str, data: bytes) -> None:
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        folder, name = posixpath.split(path)
        if protocol in _WHOLE:
            self.fs.pipe_file(path, data)
            return
        self.fs.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{shorten_name(name)}.{os.urandom(4).hex()}.part"
        try:
            self.fs.pipe_file(part, data)
            self.fs.mv(part, path)
        except OSError:
            if self.fs.exists(part):
                self.fs.rm_file(part)
            raise


Place = Folder | Url


def of(where: str | Path) -> Place:
    """The place that a path or URL names; "file:///" and "local:///" are paths.

    Raises:
        UsageError: as :class:`Url`, or a path of another machine.
    """
    if not is_url(where):
        return Folder(Path(where))
    protocol, _, rest = str(where).partition("://")
    if protocol.lower() not in ("file", "local"):
        return Url(str(where))
    machine, _, path = rest.partition("/")
    if machine not in ("", "localhost"):
        raise UsageError(f"{where}: names a machine, {machine}; a path of this one begins {protocol}:///")
    return Folder(Path(unquote(f"/{path}")))


def is_url(where: str | Path) -> bool:
    """Whether it has a protocol in front, as "s3://bucket"."""
    return "://" in str(where)


@contextmanager
def _answering(what: str, fault: str, *faults: type[Exception]) -> Iterator[None]:
    """Turn what a store's library raises into an error of ours, but for files that are not there and for `OSError`, unless it is named.

    Raises:
        ComdefendError: no credentials, no connection, no permission, whatever kind of error the library has for it.
    """
    try:
        yield
    except (ComdefendError, FileNotFoundError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, faults):
            raise
        raise ComdefendError(f"{what}: {fault}: {reason(error)}; check the URL, your credentials and the connection") from error


def _status(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except OSError:
        return None


def _refuse_unfit(path: Path, there: os.stat_result, linked: set[tuple[int, int]]) -> None:
    if stat.S_ISDIR(there.st_mode):
        raise UsageError(f"{path}: is a folder where a file is to go; rename it, or use another --out")
    if not stat.S_ISREG(there.st_mode):
        raise UsageError(f"{path}: is a symbolic link or no plain file; remove it, or use another --out")
    if (there.st_dev, there.st_ino) in linked:
        raise UsageError(f"{path}: an input is a link to it, and inputs are never changed; use another --out")


def _unreadable(name: object, error: OSError) -> ImageError:
    return ImageError(f"{name}: cannot read: {reason(error)}; name an image that is there and that you may read")


def _as_number(mark: object) -> int:
    """Nanoseconds of a time; of any other mark, a number that differs where the mark does."""
    if isinstance(mark, datetime):
        return int(mark.timestamp() * 1e9)
    if isinstance(mark, (int, float)):
        return int(mark * 1e9)
    return int.from_bytes(hashlib.blake2b(str(mark).strip('"').encode(), digest_size=7).digest(), "big")
