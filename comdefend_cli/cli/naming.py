"""Which images `comdefend purify` takes, and what each one's output is called."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.files import refuse_absent
from comdefend_cli.runtime.names import choose_fold, folds_case

STANDARD = Path("-")
#: Between the name of an image and its ending, where its output goes beside it.
MARK = ".purified"


@dataclass(frozen=True)
class Pair:
    """An image and where its output goes.

    Attributes:
        source: `STANDARD` is standard input.
        target: `STANDARD` is standard output.
        named: whether the person named the output itself, and not only its folder, or nothing.
        notices: why the output is called otherwise than the image, one sentence each.
    """

    source: Path
    target: Path
    named: bool = False
    notices: tuple[str, ...] = ()


def name_outputs(names: Sequence[str], out: str | None, ending: str | None, *, overwrite: bool) -> list[Pair]:
    """Pairs of inputs and outputs, none of which is a folder.

    Args:
        names: as given: images, patterns such as "*.png" that the shell left as they are, or "-" alone; of exactly two without `out`,
            the second is the output, unless it is a pattern: with * or ?, or with brackets that some file matches.
        out: a file for one image, or a folder; None puts each output beside its input, as "name.purified.png".
        ending: ".png" of the outputs in a folder or beside, or None to keep each image's own in a folder, and ".png" beside.
        overwrite: whether an output may be replaced; for messages.

    Raises:
        UsageError: an input is not there or is a folder; two outputs are one; inputs and output do not fit together.
    """
    if out is None and len(names) == 2 and _may_be_output(names[1]):
        source, target = map(Path, names)
        _refuse_absent_image(source, target)
        _refuse_two_readings(source, target, overwrite=overwrite)
        return [Pair(source, target, named=True)]
    sources = _expand(names)
    for source in sources:
        _refuse_absent_image(source, Path(out) if out is not None and len(sources) == 1 else None)
    if STANDARD in sources:
        if len(sources) > 1 or out is None:
            raise UsageError("standard input is one image with an output of its own: comdefend purify - OUT, or comdefend purify - -")
        return [Pair(STANDARD, Path(out), named=True)]
    if len(sources) > 1 and (folders := [source for source in sources if source.is_dir()]):
        raise UsageError(f"{folders[0]}: is a folder; give it alone, or as -o {folders[0]} where the images go")
    if out is None:
        pairs = [Pair(source, source.with_name(f"{source.stem}{MARK}{ending or '.png'}")) for source in sources]
    elif len(sources) == 1 and not _is_folder(out):
        return [Pair(sources[0], Path(out), named=True)]
    else:
        pairs = _name_in_folder(sources, out, ending)
    _refuse_collisions(pairs)
    return pairs


def _expand(names: Sequence[str]) -> list[Path]:
    """Patterns as the files that they name, which Windows' shells leave to programs; outputs of an earlier run are not among them."""
    found: list[Path] = []
    for name in names:
        matches = sorted(glob.glob(name)) if _is_pattern(name) else []  # noqa: PTH207 - Path.glob takes no absolute pattern.
        found += map(Path, matches or [name])
    inputs = [path for path in found if not path.stem.endswith(MARK)] if len(found) > 1 else found
    return list(dict.fromkeys(inputs or found))


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def _may_be_output(name: str) -> bool:
    """Whether the second of two names is no pattern, or one in brackets alone that nothing matches, as "photo[1].png"."""
    return not _is_pattern(name) or not (set("*?") & set(name) or glob.glob(name))  # noqa: PTH207 - As above.


def _refuse_absent_image(source: Path, target: Path | None) -> None:
    """Raise :class:`UsageError` where IN is not there; where OUT is, the two may have been swapped."""
    if source == STANDARD:
        return
    swapped = target is not None and target != STANDARD and target.is_file()
    remedy = f"OUT is there: did you mean comdefend purify {target} {source}?" if swapped else "name an image that is there"
    refuse_absent(source, f"no such file; {remedy}")


def _refuse_two_readings(source: Path, target: Path, *, overwrite: bool) -> None:
    """Refuse a second name that is an image already: it may have been meant as one more to purify."""
    if not overwrite and target != STANDARD and target.is_file() and target != source:
        other = "to purify both, name a folder for them with -o"
        raise UsageError(f"{target}: already exists, and of two names the second is OUT; use --overwrite to replace it; {other}")


def _is_folder(out: str) -> bool:
    return out != "-" and (out.endswith(("/", "\\")) or Path(out).is_dir() or not Path(out).suffix)


def _name_in_folder(sources: Sequence[Path], out: str, ending: str | None) -> list[Pair]:
    """Outputs of the inputs' names in a folder."""
    from comdefend_cli.batch.plan import explain_output, name_output

    def name(source: Path) -> Pair:
        output = name_output(source.name, ending, lambda: _tells_alpha(source))
        return Pair(source, Path(out) / output, notices=tuple(explain_output(source.name, output, ending)))

    if out == "-" or not _is_folder(out):
        raise UsageError(f"-o {out}: {len(sources)} images need a folder; name one without an ending, or one that ends in /")
    return list(map(name, sources))


def _tells_alpha(source: Path) -> bool:
    from comdefend_cli.imaging.reading import tells_alpha

    if not source.is_file():
        return False
    try:
        with source.open("rb") as file:
            return tells_alpha(file)
    except OSError:  # Reading the image will say it.
        return False


def _refuse_collisions(pairs: Sequence[Pair]) -> None:
    fold = choose_fold([str(pair.target) for pair in pairs], lambda: any(map(folds_case, {pair.target.parent for pair in pairs})))
    taken: dict[str, Path] = {}
    for pair in pairs:
        other = taken.setdefault(fold(str(pair.target)), pair.source)
        if other != pair.source:
            raise UsageError(f"{other} and {pair.source} would both become {pair.target}; purify them one by one, or rename one")
