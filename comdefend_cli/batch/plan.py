"""From a folder's images to their outputs: finds them, refuses what cannot be, and sorts out what is finished already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import PurePosixPath

from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.storage.listing import Found
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.imaging.formats import LOSES_ALPHA, list_suffixes
from comdefend_cli.imaging.reading import tells_alpha
from comdefend_cli.runtime.names import choose_fold


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


def find_images(source: Place, out: Place, options: Options) -> tuple[Found, list[str]]:
    """Find the images of a place by the endings of their names; hidden files and folders, and `out`, are passed over.

    Returns:
        What was found, and the output of each image.

    Raises:
        UsageError: `source` is no folder or holds no images, `out` cannot be its output, or two outputs would collide.
        ComdefendError: `source` cannot be listed.
    """
    source.refuse_output(out, recursive=options.recursive)
    endings = list_suffixes(writable=False)
    found = source.find(lambda name: PurePosixPath(name).suffix.lower() in endings, out, recursive=options.recursive)
    if not found.names and not found.unreadable:
        raise UsageError(f"{source}: holds no images{_describe_rest(found)}")
    return found, _name_outputs(source, found.names, out, options)


def _describe_rest(found: Found) -> str:
    """What else a folder without images holds, and what to do."""
    files = f" ({found.skipped} other file{'' if found.skipped == 1 else 's'})" if found.skipped else ""
    if not found.subfolders:
        return f"{files}; name a folder of images"
    folders = "1 subfolder was" if found.subfolders == 1 else f"{found.subfolders} subfolders were"
    return f"{files}; {folders} not looked into: add --recursive"


def name_output(name: str, ending: str | None, tells_transparency: Callable[[], bool] = lambda: False) -> str:
    """The output of an input: its own name, where its format can be written and is the one wanted, and else as PNG.

    Args:
        name: of the input.
        ending: ".png" and so on that is wanted, or None for the input's own.
        tells_transparency: whether the input has any; asked where its format, or one with its ending, would lose it.
    """
    own = PurePosixPath(name).suffix
    able = list_suffixes(writable=True)
    format_name = able.get(own.lower())
    if ending is None:
        keep = format_name is not None and not (format_name in LOSES_ALPHA and tells_transparency())
    else:
        keep = format_name == able[ending]
    return name if keep else name.removesuffix(own) + (ending or ".png")


def explain_output(name: str, output: str, ending: str | None) -> list[str]:
    """Why the output of an input is called otherwise than it is, one sentence each; arguments as of :func:`name_output`."""
    before, after = PurePosixPath(name), PurePosixPath(output)
    texts = []
    if ending is None and before.suffix != after.suffix:
        own = list_suffixes(writable=False).get(before.suffix.lower(), before.suffix)
        why = f"{own} is written without transparency" if own in LOSES_ALPHA else f"{own} is not written"
        texts.append(f"written as PNG: {why}")
    if before.stem != after.stem:
        texts.append("its output is numbered: another image's has its name")
    return texts


def _name_outputs(source: Place, names: list[str], out: Place, options: Options) -> list[str]:
    """The outputs of inputs, each of its own name, as `out` tells names apart."""

    def ask(name: str) -> bool:
        try:
            with source.open(name) as file:
                return tells_alpha(file)
        except (ComdefendError, OSError):  # Reading the image will say it.
            return False

    outputs = [name_output(name, options.ending, partial(ask, name)) for name in names]
    fold = choose_fold(outputs, out.folds_case)
    owners: dict[str, str] = {}
    later: list[int] = []
    for place, (name, output) in enumerate(zip(names, outputs, strict=True)):
        other = owners.setdefault(fold(output), name)
        if other == name:
            continue
        if options.on_collision == "error":
            raise UsageError(
                f"{source.show(other)} and {source.show(name)} would both become {output}; rename one, choose another --format, "
                "or let purify-dir number the later ones with --on-collision number"
            )
        later.append(place)
    for place in later:
        path = PurePosixPath(outputs[place])
        numbered = (str(path.with_name(f"{path.stem}-{number}{path.suffix}")) for number in count(2))
        outputs[place] = next(output for output in numbered if fold(output) not in owners)
        owners[fold(outputs[place])] = names[place]
    return outputs


def make_plan(source: Place, out: Place, found: Found, outputs: list[str], state: Journal, keys: set[str], options: Options) -> Plan:
    """Sort what was found into what is finished and what is to do.

    Args:
        found, outputs: as of :func:`find_images`.
        keys: of the settings with which an output counts as finished.

    Raises:
        UsageError: an output exists and is not ours, or is a folder, a link or one of the inputs.
    """
    plan = Plan([], found=found)
    foreign: list[str] = []
    for name, output in zip(found.names, outputs, strict=True):
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
