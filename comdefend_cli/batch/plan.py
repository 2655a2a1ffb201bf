"""From a folder's images to their outputs: finds them, refuses what cannot be, and sorts out what is finished already."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.storage import Folder, Place, Url, is_url
from comdefend_cli.errors import ComdefendError, UsageError, reason
from comdefend_cli.imaging.formats import list_suffixes
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS

#: File systems that take "A.png" and "a.png" for one file.
_FOLDS_CASE = sys.platform in ("darwin", "win32")


@dataclass(frozen=True)
class Options:
    """How a folder is gone through and its outputs are written.

    Attributes:
        recursive: also go through subfolders, which the output folder then mirrors.
        format: "png", "jpg" and so on for all outputs, or None to keep each file's own.
        quality: 1 to 100 of lossy formats, or None for the default.
        strip: leave ICC profile and EXIF out.
        overwrite: do all again, and replace files that are not ours.
        max_megapixels: refuse larger images.

    Raises:
        UsageError: a format that cannot be written.
    """

    recursive: bool = False
    format: str | None = None
    quality: int | None = None
    strip: bool = False
    overwrite: bool = False
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if self.ending is not None and self.ending not in list_suffixes(writable=True):
            raise UsageError(f"cannot write images of the format {self.format!r}; use png, jpg, webp, tiff or bmp")

    @property
    def ending(self) -> str | None:
        """The ending that `format` asks for, ".png" say."""
        return None if self.format is None else f".{self.format.lower().lstrip('.')}"


@dataclass(frozen=True)
class Found:
    """What a scan found; paths are below the folders, with forward slashes.

    Attributes:
        images: input and output of each image, sorted within each folder.
        skipped: number of files that are no images by their name, hidden ones not counted.
        subfolders: number of subfolders left out for want of `recursive`.
        unreadable: subfolders that could not be listed, with the reason.
        linked: device and inode of the inputs that are symbolic links.
    """

    images: list[tuple[str, str]]
    skipped: int
    subfolders: int
    unreadable: list[tuple[str, str]]
    linked: set[tuple[int, int]]


@dataclass(frozen=True)
class Job:
    """One image to do: input and output below their folders, size in bytes, whether it replaces an output of ours."""

    __slots__ = ("output", "replaces", "size", "source")  # There may be a million.
    source: str
    output: str
    size: int
    replaces: bool


@dataclass(frozen=True)
class Plan:
    """What a run will do: images to do, those that are finished already (input, output), and what was found."""

    jobs: list[Job]
    kept: list[tuple[str, str]]
    found: Found


def default_output(source: Path | str) -> Path | str:
    """`DIR-purified`, beside DIR; of a URL too.

    Raises:
        UsageError: DIR has no name, as "/"; a URL names no more than a bucket.
    """
    if is_url(source):
        if not str(source).partition("://")[2].strip("/").partition("/")[2]:
            raise UsageError(f"{source}: names no folder to make the output's name of; give --out")
        return f"{str(source).rstrip('/')}-purified"
    source = Path(source)
    named = source if source.name not in ("", "..") else source.resolve()
    if not named.name:
        raise UsageError(f"{source}: has no name to make the output folder's of; give --out")
    return named.with_name(f"{named.name}-purified")


def scan(source: Place, out: Place, options: Options) -> Found:
    """Find the images of a place by the endings of their names; hidden files and folders are passed over.

    Symbolic links to files are inputs as others; those to folders are not followed. `out` is left out.

    Raises:
        UsageError: `source` is no folder, `out` cannot be its output, or two outputs would collide.
        ComdefendError: `source` cannot be listed.
    """
    if isinstance(source, Url):
        found = _scan_url(source, out, options)
    else:
        if isinstance(out, Folder):
            refuse_folders(source.root, out.root, recursive=options.recursive)
        found = _scan_folder(source.root, out, options)
    _refuse_collisions(source, found.images)
    return found


def _scan_url(source: Url, out: Place, options: Options) -> Found:
    """Of a store, which knows files only: all that lie under the URL."""
    below = out.below(source) if isinstance(out, Url) else None
    if below == "":
        raise UsageError(f"{out}: is the place of the images itself; name another with --out")
    if options.recursive and source.below(out):
        raise UsageError(f"{out}: holds the place of the images, so outputs could fall among them; name another with --out")
    own = f"{below}/" if below else None
    found = Found([], 0, 0, [], set())
    skipped, folders = 0, set()
    for name in source.listing:
        parts = name.split("/")
        # A name that leads upwards could become a file outside the output.
        if any(part in ("", "..") or part.startswith(".") for part in parts) or (own and name.startswith(own)):
            continue
        if len(parts) > 1 and not options.recursive:
            folders.add(parts[0])
        elif PurePosixPath(name).suffix.lower() in list_suffixes(writable=False):
            found.images.append((name, _output(name, options.ending)))
        else:
            skipped += 1
    if not source.listing:
        raise UsageError(f"{source}: no such folder, or nothing in it")
    return replace(found, skipped=skipped, subfolders=len(folders))


def _scan_folder(source: Path, out: Place, options: Options) -> Found:
    status = out.stamp("") if isinstance(out, Folder) else None
    own = _identity(status) if status else None
    found = Found([], 0, 0, [], set())
    skipped = subfolders = 0
    folders = [""]
    while folders:
        below = folders.pop()
        inner = []
        for entry in _listed(source, below, found):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                if _identity(entry.stat()) != own:
                    inner.append(name)
            elif _is_image(entry):
                found.images.append((name, _output(name, options.ending)))
                _note_link(entry, found)
            else:
                skipped += 1
        if options.recursive:
            folders.extend(reversed(inner))
        else:
            subfolders += len(inner)
    return replace(found, skipped=skipped, subfolders=subfolders)


def refuse_folders(source: Path, out: Path, *, recursive: bool) -> None:
    """Raise :class:`UsageError` unless `source` is a folder and `out` can be that of its outputs."""
    if not source.is_dir():
        fault = "is a file; use comdefend purify for a single image" if source.exists() else "no such folder"
        raise UsageError(f"{source}: {fault}")
    inside, outside = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if inside == outside or (out.exists() and out.samefile(source)):
        raise UsageError(f"{out}: is the folder of the images itself; name another with --out")
    if recursive and outside in inside.parents:
        raise UsageError(f"{out}: holds the folder of the images, so outputs could fall among them; name another with --out")


def _listed(source: Path, below: str, found: Found) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted; a subfolder that cannot be listed is noted as such."""
    try:
        with os.scandir(source / below) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        text = f"cannot list this folder: {reason(error)}"
        if not below:
            raise ComdefendError(f"{source}: {text}") from error
        found.unreadable.append((below, text))
        return []


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its ending; a pipe or device is none. A link to nowhere is one, so that it is named as failed."""
    if PurePosixPath(entry.name).suffix.lower() not in list_suffixes(writable=False):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:
        return True


def _note_link(entry: os.DirEntry[str], found: Found) -> None:
    if entry.is_symlink():
        with suppress(OSError):
            found.linked.add(_identity(entry.stat()))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _output(name: str, ending: str | None) -> str:
    """The output of an input: its own name, where its format can be written and is the one wanted."""
    own = PurePosixPath(name).suffix
    able = list_suffixes(writable=True)
    format_name = able.get(own.lower())
    keep = format_name is not None if ending is None else format_name == able[ending]
    return name if keep else name.removesuffix(own) + (ending or ".png")


def _refuse_collisions(source: Place, images: list[tuple[str, str]]) -> None:
    taken: dict[str, str] = {}
    for name, output in images:
        other = taken.setdefault(_folded(output), name)
        if other != name:
            raise UsageError(
                f"{source.show(other)} and {source.show(name)} would both become {output}; rename one, or choose another --format"
            )


def _folded(output: str) -> str:
    return unicodedata.normalize("NFC", output).casefold() if _FOLDS_CASE else output


def plan(source: Place, out: Place, found: Found, state: Journal, keys: set[str], *, overwrite: bool) -> Plan:
    """Sort what was found into what is finished and what is to do.

    Args:
        keys: of the settings with which an output counts as finished.

    Raises:
        UsageError: an output exists and is not ours, or is a folder, a link or one of the inputs.
    """
    planned = Plan([], [], found)
    foreign: list[str] = []
    stamps = source.listing.get if isinstance(source, Url) else source.stamp
    for name, output in found.images:
        there, before = out.taken(output, found.linked), stamps(name)
        if there is not None:
            if not overwrite and not state.knows(output):
                foreign.append(output)
            elif not overwrite and before and any(state.finished(output, name, before, there, key) for key in keys):
                planned.kept.append((name, output))
                continue
        planned.jobs.append(Job(name, output, before.st_size if before else 0, there is not None))
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UsageError(
            f"{out.show(foreign[0])}: exists and is not from purify-dir{more}; use --overwrite to replace it, or another --out"
        )
    return planned
