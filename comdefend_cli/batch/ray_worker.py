"""What a Ray worker of `purify-dir` does: the blocks of images that :mod:`comdefend_cli.batch.ray_engine` hands it.

So that a block can be begun again when its worker dies, a worker first puts a file beside the outputs that says which ones it has begun:
those are ours from then on, and the next attempt, or the next run, replaces them. The file goes once the journal knows how the block ended.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from comdefend_cli.batch import storage as places
from comdefend_cli.batch.journal import STATE
from comdefend_cli.batch.local import BEGUN, Networks, Result, Work
from comdefend_cli.batch.plan import Found, Job, Options, Plan
from comdefend_cli.batch.storage import Folder, Stamp
from comdefend_cli.errors import ComdefendError, reason
from comdefend_cli.imaging.reading import lift_pillow_limit
from comdefend_cli.inference.purifier import Settings
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.machine import count_cores

#: Attempts at a block whose worker dies each time: its images may be too large for the machine.
ATTEMPTS = 4


@dataclass(frozen=True)
class Order:
    """What is asked for, as it stands in the command line: weights (name or file), device, precision, backend and settings."""

    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "torch"
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Task:
    """What all workers of a run are told."""

    source: str
    out: str
    order: Order
    options: Options
    cpus: float
    run: str

    def marker(self, number: int) -> str:
        """The name of the file that says that a block is begun."""
        return f"{BEGUN}{self.run}-{number}"


class Worker:
    """Purifies blocks; one lives in each of Ray's actors."""

    def __init__(self, task: Task, loaded: Any) -> None:
        lift_pillow_limit()
        self._task = task
        self._source, self._out = places.of(task.source), places.of(task.out)
        there = loaded is None or isinstance(loaded, Weights)
        self._networks = _networks(task.order, loaded if there else require("ray", extra="ray").get(loaded))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Purify a block: {"number", "jobs"} to {"number", "results", "left"}.

        The latter two are JSON: one record a job in their order, and the outputs that an attempt which died may have left.
        """
        number = int(row["number"])
        jobs = [Job(*fields) for fields in json.loads(row["jobs"])]
        notes = _Notes({})
        results: dict[str, Result] = {}
        fault, left = "", []
        try:
            begun, attempts = self._begun(number, jobs)
            left = begun if attempts else []
            if attempts == ATTEMPTS:
                advice = "perhaps for want of memory; try fewer --workers, or the local engine"
                raise ComdefendError(f"its worker died {ATTEMPTS} times, {advice}")
            ours = set(left)
            planned = Plan([replace(job, replaces=job.replaces or job.output in ours) for job in jobs], [], Found([], 0, 0, [], set()))
            memory = min(1.0, self._task.cpus / count_cores())  # Other workers are on this machine.
            work = Work(self._source, self._out, self._networks, self._task.options, planned, notes, memory=memory)
            results = {str(result.input): result for result in work.results()}
        except Exception as error:  # One block must not end the run.
            fault = reason(error)
        records = []
        for job in jobs:
            source, output = self._source.show(job.source), self._out.show(job.output)
            record = asdict(results.get(str(source)) or Result(source, output, "failed", fault, job.size))
            del record["input"], record["output"]
            records.append({**record, "done": notes.ended.get(job.output)})
        return {"number": number, "results": json.dumps(records), "left": json.dumps([name for name in left if name not in notes.ended])}

    def _begun(self, number: int, jobs: list[Job]) -> tuple[list[str], int]:
        """Say which outputs are begun: those that are ours or not there yet. Returns them, and how many attempts there were before.

        What stands there at the first attempt is somebody's, and stays so.

        Raises:
            ComdefendError: this machine does not see the output folder, or it cannot be written to.
        """
        if isinstance(self._out, Folder) and self._out.stamp(STATE) is None:
            raise ComdefendError(f"{self._out}: this machine does not see the output folder; use a path that all see, or a URL")
        marker = self._task.marker(number)
        before = json.loads(self._out.read(marker)) if self._out.stamp(marker) is not None else None
        if before:
            outputs, attempts = before["outputs"], before["attempts"]
            self._out.sweep(outputs)
        else:
            outputs, attempts = [job.output for job in jobs if job.replaces or self._out.stamp(job.output) is None], 0
        if attempts < ATTEMPTS:
            self._out.write(marker, json.dumps({"outputs": outputs, "attempts": attempts + 1}).encode(), overwrite=before is not None)
        return outputs, attempts


@dataclass
class _Notes:
    """What a worker has to say to the journal, which lies elsewhere: by output, stamps before and after, and the key."""

    ended: dict[str, tuple[list[int], list[int], str]]

    def begin(self, outputs: list[str]) -> None:
        """Nothing: the whole block was begun."""

    def done(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Note it."""
        self.ended[output] = ([before.st_size, before.st_mtime_ns], [after.st_size, after.st_mtime_ns], key)

    def drop(self, output: str) -> None:
        """Nothing: what is not done does not count."""


def _networks(order: Order, loaded: Weights | None) -> Networks:
    return Networks(loaded, device=order.device, precision=order.precision, backend=order.backend, settings=order.settings)


def look(order: Order, loaded: Weights | None) -> tuple[str, str, str]:
    """On a worker: its device for people, and the precision and backend that "auto" is there."""
    networks = _networks(order, loaded)
    return networks.where, networks.precision, networks.backend
