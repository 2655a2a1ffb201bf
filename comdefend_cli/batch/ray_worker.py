"""What a Ray worker of `purify-dir` does: the chunks of images that :mod:`comdefend_cli.batch.ray_engine` hands it.

So that a chunk can be begun again when its worker dies, a worker first puts a file beside the outputs that says which ones it has begun:
those are ours from then on, and the next attempt, or the next run, replaces them. The file goes once the journal knows how the chunk ended.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from comdefend_cli.batch.engine import BEGUN, Result
from comdefend_cli.batch.journal import STATE
from comdefend_cli.batch.local import LocalEngine
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.plan import Job, Plan
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.listing import Stamp
from comdefend_cli.batch.storage.place import open_place
from comdefend_cli.errors import ComdefendError, explain
from comdefend_cli.imaging.reading import prepare_pillow
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.machine import count_cores

#: Attempts at a chunk whose worker dies each time: its images may be too large for the machine.
ATTEMPTS = 4


@dataclass(frozen=True)
class Task:
    """What all workers of a run are told."""

    source: str
    out: str
    request: Request
    options: Options
    cpus: float
    run: str

    def name_marker(self, number: int) -> str:
        """The name of the file that says that a chunk is begun."""
        return f"{BEGUN}{self.run}-{number}"


class Worker:
    """Purifies chunks; one lives in each of Ray's actors."""

    def __init__(self, task: Task, loaded: Any) -> None:
        prepare_pillow(task.options.max_megapixels)
        self._task = task
        self._source, self._out = open_place(task.source), open_place(task.out)
        there = loaded is None or isinstance(loaded, Weights)
        self._networks = Networks(task.request, loaded if there else require("ray", extra="ray").get(loaded))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Purify a chunk: {"number", "jobs"} to {"number", "results", "left"}.

        The latter two are JSON: one record a job in their order, and the outputs that an attempt which died may have left.
        """
        number = int(row["number"])
        jobs = [Job(*fields) for fields in json.loads(row["jobs"])]
        notes = _Notes({})
        results: dict[str, Result] = {}
        fault, left = "", []
        try:
            begun, attempts = self._begin(number, jobs)
            left = begun if attempts else []
            if attempts == ATTEMPTS:
                advice = "perhaps for want of memory; try fewer --workers, or the local engine"
                raise ComdefendError(f"its worker died {ATTEMPTS} times, {advice}")
            ours = set(left)
            plan = Plan([replace(job, replaces=job.replaces or job.output in ours) for job in jobs])
            memory = min(1.0, self._task.cpus / count_cores())  # Other workers are on this machine.
            engine = LocalEngine(self._source, self._out, self._networks, self._task.options, plan, notes, memory=memory)
            results = {str(result.input): result for result in engine.results()}
        except Exception as error:  # One chunk must not end the run.
            fault = explain(error)
        records = []
        for job in jobs:
            source, output = self._source.show(job.source), self._out.show(job.output)
            record = asdict(results.get(str(source)) or Result(source, output, "failed", fault, job.size))
            del record["input"], record["output"]
            records.append({**record, "done": notes.ended.get(job.output)})
        return {"number": number, "results": json.dumps(records), "left": json.dumps([name for name in left if name not in notes.ended])}

    def _begin(self, number: int, jobs: list[Job]) -> tuple[list[str], int]:
        """Say which outputs are begun: those that are ours or not there yet. Returns them, and how many attempts there were before.

        What stands there at the first attempt is somebody's, and stays so.

        Raises:
            ComdefendError: this machine does not see the output folder, or it cannot be written to.
        """
        self._out.refuse_unseen(STATE)
        marker = self._task.name_marker(number)
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
        """Nothing: the whole chunk was begun."""

    def finish(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Note it."""
        self.ended[output] = ([before.st_size, before.st_mtime_ns], [after.st_size, after.st_mtime_ns], key)

    def drop(self, output: str) -> None:
        """Nothing: what is not done does not count."""


def describe_networks(request: Request, loaded: Weights | None) -> tuple[str, str, str]:
    """On a worker: its device for people, and the precision and backend that "auto" is there."""
    networks = Networks(request, loaded)
    return networks.where, networks.identity.precision, networks.identity.backend
