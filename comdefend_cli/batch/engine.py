"""What the engines have in common, that of this machine and that of a cluster: how a run begins, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from comdefend_cli.batch.identity import Identity
from comdefend_cli.batch.journal import Journal, open_journal
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.plan import Plan, find_images, make_plan
from comdefend_cli.batch.storage.place import Place

#: How the names of files begin in which workers on other machines say what they have begun (see :mod:`comdefend_cli.batch.ray_worker`).
BEGUN = ".comdefend-begun-"

Status = Literal["done", "kept", "failed"]


@dataclass(frozen=True)
class Result:
    """What came of one input.

    Attributes:
        input, output: paths, or URLs; the output is there unless the status is "failed".
        status: "done" now, "kept" from an earlier run, or "failed".
        reason: why it failed, or "".
        size: bytes of the input.
        width, height: in pixels, upright; None if it was not read.
        seconds: of work, without waiting.
        notices: what was changed in reading it, and why its output is called otherwise, one sentence each.
        format: of the output, as Pillow names it, or "".
    """

    input: Path | str
    output: Path | str
    status: Status
    reason: str = ""
    size: int = 0
    width: int | None = None
    height: int | None = None
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    format: str = ""


class Engine(Protocol):
    """A planned run.

    Attributes:
        plan: what will be done.
        pixels: number of pixels that went through the networks so far.
        identity: what tells its results from others.
        where: what computes, for a person.
    """

    plan: Plan
    pixels: int
    identity: Identity
    where: str

    def results(self) -> Iterator[Result]:
        """One result an image, first those that are kept, the rest as they come to their end; fewer after :meth:`stop`.

        Go through them once.

        Raises:
            ComdefendError: the work cannot go on.
        """

    def stop(self) -> None:
        """End soon, with whole files; what is left is for the next run. May be called from a signal handler."""


@contextmanager
def prepare(source: Place, out: Place, identity: Identity, options: Options) -> Iterator[tuple[Plan, Journal]]:
    """What any engine begins with: the plan, and the journal of the output folder, held. Nothing is written if it is refused.

    Args:
        source: the images; nothing in it is changed.
        out: where the outputs go, made if need be; it may lie in `source`, and is then left out of the search.
        identity: of the results.
        options: how to go through the one and write into the other.

    Raises:
        UsageError: `source` is no folder; the outputs of two inputs, or an output and a file that is not
            ours, collide; another run works in `out`.
        ComdefendError: a place cannot be read or written.
    """
    found, outputs = find_images(source, out, options)
    with open_journal(out) as journal:
        adopt_begun(out, journal)
        plan = make_plan(source, out, found, outputs, journal, identity.make_keys(options), options)
        out.sweep(journal.list_leftovers())
        yield plan, journal


def adopt_begun(out: Place, journal: Journal) -> None:
    """Take over what workers of a run on several machines said to have begun and did not report."""
    for name in out.find_beginning(BEGUN):
        with suppress(ValueError, TypeError, KeyError):
            journal.begin(list(map(str, json.loads(out.read(name))["outputs"])))
        journal.sync()
        out.remove(name)
    for name in out.find_beginning(f".{BEGUN}"):  # Not whole yet when its writer died, before it had begun anything.
        out.remove(name)


def report_known(plan: Plan, source: Place, out: Place) -> Iterator[Result]:
    """Results of what needs no work: kept from before, or in folders that cannot be listed."""
    for name, output in plan.kept:
        yield Result(source.show(name), out.show(output), "kept")
    for name, text in plan.found.unreadable:
        yield Result(source.show(name), out.show(name), "failed", text)
