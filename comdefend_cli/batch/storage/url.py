"""An fsspec URL, of an object store and the like, as a place of images."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from comdefend_cli.batch.storage.listing import Found, make_read_error
from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import make_write_error
from comdefend_cli.runtime.parts import shorten_name

if TYPE_CHECKING:
    from comdefend_cli.batch.storage.place import Place

#: Stores in which a file appears whole or not at all, so that it needs no other name before it is finished.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
#: What object stores call a file's time of change.
_COARSE = ("LastModified", "last_modified", "updated")


class UrlStamp:
    """A stamp made of what a store says of a file: its ETag or the like, or else its time of change.

    An object store's times are taken to the second: some tell more of it in a listing than of a single file.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self.st_size = int(about.get("size") or 0)
        told = {key: about[key] for key in ("ETag", "etag", "md5Hash", "mtime", *_COARSE, "created") if about.get(key) is not None}
        key, mark = next(iter(told.items()), ("", 0))
        self.st_mtime_ns = _make_number(mark.replace(microsecond=0) if key in _COARSE and isinstance(mark, datetime) else mark)


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
            raise UsageError(f"{url}: {explain(error)}") from error
        except OSError as error:
            raise ComdefendError(f"{url}: cannot connect: {explain(error)}") from error
        self.root: str = root.rstrip("/")
        self._listing: dict[str, UrlStamp] | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def address(self) -> str:
        """What names it wherever a process runs."""
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
            with suppress(FileNotFoundError), _translate_errors(self.url, "cannot list", OSError):
                there = self.fs.find(self.root, detail=True)
            cut = len(self.root) + 1
            self._listing = {path[cut:]: UrlStamp(about) for path, about in sorted(there.items()) if len(path) > cut}
        return self._listing

    def stamp(self, name: str) -> UrlStamp | None:
        """Of a file; None if there is none.

        Raises:
            ComdefendError: the store does not answer.
        """
        try:
            with _translate_errors(self.show(name), "cannot look it up", OSError):
                return UrlStamp(self.fs.info(self._make_path(name)))
        except FileNotFoundError:
            return None

    def stamp_found(self, name: str) -> UrlStamp | None:
        """The same of a file that :meth:`find` found, as it was when the place was listed."""
        return self.listing.get(name)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            with _translate_errors(self.show(name), "cannot read"):
                return bytes(self.fs.cat_file(self._make_path(name)))
        except OSError as error:
            raise make_read_error(self.show(name), error) from error

    def open(self, name: str) -> BinaryIO:
        """A file, to look at its beginning; errors as of :meth:`read`."""
        try:
            with _translate_errors(self.show(name), "cannot read"):
                return cast(BinaryIO, self.fs.open(self._make_path(name), "rb"))
        except OSError as error:
            raise make_read_error(self.show(name), error) from error

    def write(self, name: str, data: bytes, *, overwrite: bool) -> UrlStamp:
        """Put a file into its place whole; its stamp.

        Raises:
            UsageError: it is there and `overwrite` is false.
            ComdefendError: it cannot be written.
        """
        path = self._make_path(name)
        try:
            with _translate_errors(self.show(name), "cannot write"):
                if not overwrite and self.stamp(name) is not None:
                    raise UsageError(f"{self.show(name)}: already exists; use --overwrite to replace it")
                self._put(path, data)
                return UrlStamp(self.fs.info(path))
        except OSError as error:
            raise make_write_error(self.show(name), error) from error

    def remove(self, name: str) -> None:
        """Delete a file that may have gone already."""
        try:
            with _translate_errors(self.show(name), "cannot delete"):
                self.fs.rm_file(self._make_path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise make_write_error(self.show(name), error, "cannot delete") from error

    def find_beginning(self, prefix: str) -> list[str]:
        """Files directly in the place whose names begin so."""
        try:
            with _translate_errors(self.url, "cannot list", OSError):
                self.fs.invalidate_cache(self.root)
                paths = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in map(posixpath.basename, paths) if name.startswith(prefix))

    def sweep(self, outputs: Iterable[str]) -> None:
        """Nothing: stores show a file once it is whole."""

    def folds_case(self) -> bool:
        """No: to stores, names are texts."""
        return False

    def find(self, wanted: Callable[[str], bool], out: Place, *, recursive: bool) -> Found:
        """As :meth:`comdefend_cli.batch.storage.folder.Folder.find`, of a store, which knows files only: all that lie under the URL.

        Raises:
            UsageError: there are none.
            ComdefendError: the store does not answer.
        """
        if not self.listing:
            raise UsageError(f"{self}: no such folder, or nothing in it")
        below = _name_below(self, out)
        own = f"{below}/" if below else None
        found, folders = Found(), set()
        for name in self.listing:
            parts = name.split("/")
            # A name that leads upwards could become a file outside the output.
            if any(part in ("", "..") or part.startswith(".") for part in parts) or (own and name.startswith(own)):
                continue
            if len(parts) > 1 and not recursive:
                folders.add(parts[0])
            elif wanted(parts[-1]):
                found.names.append(name)
            else:
                found.skipped += 1
        found.subfolders = len(folders)
        return found

    def refuse_output(self, out: Place, *, recursive: bool) -> None:
        """Raise :class:`UsageError` unless `out` can be the place of the outputs."""
        if _name_below(self, out) == "":
            raise UsageError(f"{out}: is the place of the images itself; name another with --out")
        if recursive and _name_below(out, self):
            raise UsageError(f"{out}: holds the place of the images, so outputs could fall among them; name another with --out")

    def check_output(self, output: str, linked: set[tuple[int, int]]) -> UrlStamp | None:
        """What stood where an output is to go when the place was listed, or None."""
        return self.listing.get(output)

    def refuse_unseen(self, name: str) -> None:
        """Nothing: a URL leads every machine to the same place."""

    @contextmanager
    def hold(self, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
        """As :meth:`comdefend_cli.batch.storage.folder.Folder.hold`; in a store nothing can be appended to: each time, the whole is put.

        It cannot be locked either: that no two runs work in one at a time is for the person to see to.
        """
        with tempfile.TemporaryDirectory(prefix="comdefend-") as folder:
            path = Path(folder) / name
            if name in self.listing:
                path.write_bytes(self.read(name))

            def put() -> None:
                if path.exists() and path.stat().st_size:
                    self.write(name, path.read_bytes(), overwrite=True)

            yield path, put

    def _make_path(self, name: str) -> str:
        return f"{self.root}/{name}"

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


@contextmanager
def _translate_errors(what: str, fault: str, *faults: type[Exception]) -> Iterator[None]:
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
        raise ComdefendError(f"{what}: {fault}: {explain(error)}; check the URL, your credentials and the connection") from error


def _name_below(upper: Place, lower: Place) -> str | None:
    """The name of a place below another: "" where it is the same place, None where it is elsewhere."""
    if not (isinstance(upper, Url) and isinstance(lower, Url) and type(upper.fs) is type(lower.fs)):
        return None
    if upper.root == lower.root:
        return ""
    return lower.root.removeprefix(f"{upper.root}/") if lower.root.startswith(f"{upper.root}/") else None


def _make_number(mark: object) -> int:
    """Nanoseconds of a time; of any other mark, a number that differs where the mark does."""
    if isinstance(mark, datetime):
        return int(mark.timestamp() * 1e9)
    if isinstance(mark, (int, float)):
        return int(mark * 1e9)
    return int.from_bytes(hashlib.blake2b(str(mark).strip('"').encode(), digest_size=7).digest(), "big")
