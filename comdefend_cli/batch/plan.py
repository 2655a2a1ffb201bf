"""From a folder's images to their outputs: finds them, refuses what cannot be, and sorts out what is finished already."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.storage.listing import Found
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.errors import UsageError
from comdefend_cli.imaging.formats import list_suffixes

#: File systems that take "A.png" and "a.png" for one file.
_FOLDS_CASE = sys.platform in ("darwin", "win32")


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
    kept: list[tuple[str, str]] = field(default_factory=list)
    found: Found = field(default_factory=Found)


def find_images(source: Place, out: Place, options: Options) -> Found:
    """Find the images of a place by the endings of their names; hidden files and folders, and `out`, are passed over.

    Raises:
        UsageError: `source` is no folder or holds no images, `out` cannot be its output, or two outputs would collide.
        ComdefendError: `source` cannot be listed.
    """
    source.refuse_output(out, recursive=options.recursive)
    endings = list_suffixes(writable=False)
    found = source.find(lambda name: PurePosixPath(name).suffix.lower() in endings, out, recursive=options.recursive)
    if not found.names and not found.unreadable:
        raise UsageError(f"{source}: holds no images{_describe_rest(found)}")
    _refuse_collisions(source, found.names, options)
    return found


def _describe_rest(found: Found) -> str:
    """What else a folder without images holds, and what to do."""
    files = f" ({found.skipped} other file{'' if found.skipped == 1 else 's'})" if found.skipped else ""
    if not found.subfolders:
        return f"{files}; name a folder of images"
    folders = "1 subfolder was" if found.subfolders == 1 else f"{found.subfolders} subfolders were"
    return f"{files}; {folders} not looked into: add --recursive"


def name_output(name: str, ending: str | None) -> str:
    """The output of an input: its own name, where its format can be written and is the one wanted."""
    own = PurePosixPath(name).suffix
    able = list_suffixes(writable=True)
    format_name = able.get(own.lower())
    keep = format_name is not None if ending is None else format_name == able[ending]
    return name if keep else name.removesuffix(own) + (ending or ".png")


def _refuse_collisions(source: Place, names: list[str], options: Options) -> None:
    taken: dict[str, str] = {}
    for name in names:
        output = name_output(name, options.ending)
        other = taken.setdefault(_fold(output), name)
        if other != name:
            raise UsageError(
                f"{source.show(other)} and {source.show(name)} would both become {output}; rename one, or choose another --format"
            )


def _fold(output: str) -> str:
    return unicodedata.normalize("NFC", output).casefold() if _FOLDS_CASE else output


def make_plan(source: Place, out: Place, found: Found, state: Journal, keys: set[str], options: Options) -> Plan:
    """Sort what was found into what is finished and what is to do.

    Args:
        keys: of the settings with which an output counts as finished.

    Raises:
        UsageError: an output exists and is not ours, or is a folder, a link or one of the inputs.
    """
    plan = Plan([], found=found)
    foreign: list[str] = []
    for name in found.names:
        output = name_output(name, options.ending)
        there, before = out.check_output(output, found.linked), source.stamp_found(name)
        if there is not None and not options.overwrite:
            if not state.knows(output):
                foreign.append(output)
            elif before and any(state.is_finished(output, name, before, there, key) for key in keys):
                plan.kept.append((name, output))
                continue
        plan.jobs.append(Job(name, output, before.st_size if before else 0, there is not None))
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UsageError(
            f"{out.show(foreign[0])}: exists and is not from purify-dir{more}; use --overwrite to replace it, or another --out"
        )
    return plan
