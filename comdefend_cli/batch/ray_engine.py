"""The engine of many machines: Ray Data hands chunks of images to workers, each of which holds the networks.

    with connect(cluster) as ray, open_ray(ray, source, out, request, options, cluster) as engine:
        for result in engine.results():
            ...

A worker (:mod:`comdefend_cli.batch.ray_worker`) does with its chunk what the local engine does with a folder.
Only this process writes the journal.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from comdefend_cli.batch.engine import Result, adopt_begun, prepare, report_known
from comdefend_cli.batch.identity import Identity, list_sha256s
from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.plan import Job, Plan
from comdefend_cli.batch.ray_cluster import Cluster, fetch, fit_cluster, translate
from comdefend_cli.batch.ray_worker import Task, Worker, describe_networks
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.network.registry import load_weights
from comdefend_cli.network.weight_file import Weights

#: Most images and bytes of input in a chunk: what a dead worker's successor does again at most.
CHUNK_IMAGES = 256
CHUNK_BYTES = 32 * 2**20
#: Chunks for each worker at least, where there are images enough, so that all end at about the same time.
CHUNKS_A_WORKER = 4
#: Seconds between two looks at whether to stop, and at least between two times that the journal is made durable.
_LOOK = 0.1
_SETTLE = 1.0


@contextmanager
def open_ray(
    ray: Any, source: Place, out: Place, request: Request, options: Options | None = None, cluster: Cluster | None = None
) -> Iterator[RayEngine]:
    """As :func:`comdefend_cli.batch.local.open_local`, for places that all machines of the cluster reach by the same path or URL.

    Raises:
        UsageError: as there; or the cluster has not what a worker needs.
        ComdefendError: a place cannot be read or written.
    """
    options = options or Options()
    cluster = fit_cluster(ray, cluster or Cluster(), request.device)
    loaded = load_weights(request.weights) if request.weights else None
    # What "auto" is on one worker, all must do: the pixels would differ.
    where, precision, backend = fetch(ray, ray.remote(**cluster.resources)(describe_networks).remote(request, loaded))
    request = replace(request, precision=precision, backend=backend)
    identity = Identity(list_sha256s(loaded), precision, backend, request.settings)
    with prepare(source, out, identity, options) as (plan, journal):
        task = Task(source.address, out.address, request, options, cluster.resources["num_cpus"], secrets.token_hex(4))
        where = f"{cluster.workers} Ray workers, {where}"
        engine = RayEngine(ray, source, out, task, cluster, loaded, identity, where, plan, journal)
        try:
            yield engine
        finally:
            engine.stop()


@dataclass
class RayEngine:
    """A planned run on a cluster, which :func:`open_ray` makes; as :class:`comdefend_cli.batch.engine.Engine`."""

    ray: Any
    source: Place
    out: Place
    task: Task
    cluster: Cluster
    loaded: Weights | None
    identity: Identity
    where: str
    plan: Plan
    journal: Journal
    pixels: int = 0
    _stop_asked: bool = False
    _ended: list[int] = field(default_factory=list)  # Chunks whose markers wait for the journal to be durable.
    _settled: float = field(default_factory=time.monotonic)
    _cost: float = 0.0

    def stop(self) -> None:
        """End soon; chunks in work are begun again by the next run. May be called from a signal handler."""
        self._stop_asked = True

    def results(self) -> Iterator[Result]:
        """One result an image, first those that are kept, the rest chunk by chunk; fewer after :meth:`stop`.

        Raises:
            ComdefendError: the workers cannot work at all.
        """
        yield from report_known(self.plan, self.source, self.out)
        most = len(self.plan.jobs) // (CHUNKS_A_WORKER * (self.cluster.workers or 1))
        chunks = dict(enumerate(_cut_into_chunks(self.plan.jobs, max(1, min(CHUNK_IMAGES, most)))))
        try:
            for row in self._receive_rows(chunks) if chunks else ():
                yield from self._take_in(row, chunks.pop(int(row["number"]), []))  # A row comes again if Ray lost it.
            for job in (job for jobs in chunks.values() for job in jobs if not self._stop_asked):
                yield Result(self.source.show(job.source), self.out.show(job.output), "failed", "Ray lost it", job.size)
        finally:
            self.stop()  # Also where the results are not wanted to their end: nothing may be written after the journal.
            self._settle(now=True)
            adopt_begun(self.out, self.journal)

    def _receive_rows(self, chunks: dict[int, list[Job]]) -> Iterator[dict[str, Any]]:
        """Rows of the workers as they come, until the end or :meth:`stop`."""
        rows: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()
        items = [{"number": number, "jobs": json.dumps([_list_fields(job) for job in jobs])} for number, jobs in chunks.items()]
        threading.Thread(target=self._drive, args=(items, rows), daemon=True).start()
        while True:
            try:
                row = rows.get(timeout=_LOOK)
            except Empty:
                if self._stop_asked:
                    return
                continue
            if row is None:
                return
            if isinstance(row, BaseException):
                raise translate(row) from row
            yield row

    def _drive(self, items: list[dict[str, Any]], rows: SimpleQueue[dict[str, Any] | BaseException | None]) -> None:
        """Let Ray Data go through the chunks. In a thread of its own, since nothing else wakes who waits for Ray."""
        try:
            loaded = None if self.loaded is None else self.ray.put(self.loaded)
            data = self.ray.data
            context = data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            mapped = data.from_items(items, override_num_blocks=len(items)).map(
                Worker,
                fn_constructor_kwargs={"task": self.task, "loaded": loaded},
                compute=data.ActorPoolStrategy(size=self.cluster.workers),
                **self.cluster.resources,
            )
            for row in mapped.iter_rows():
                rows.put(row)
                if self._stop_asked:
                    break
            rows.put(None)
        except BaseException as error:
            rows.put(error)

    def _take_in(self, row: dict[str, Any], jobs: list[Job]) -> Iterator[Result]:
        """What a worker said of a chunk, into the journal and as results."""
        for job, record in zip(jobs, json.loads(row["results"]) if jobs else [], strict=True):
            yield self._make_result(job, record)
        if left := json.loads(row["left"]):
            self.journal.begin(left)  # The marker goes; what an attempt that died may have left stays ours.
        self._ended.append(int(row["number"]))
        self._settle()

    def _make_result(self, job: Job, record: dict[str, Any]) -> Result:
        done = record.pop("done")
        if done is not None:
            before, after = (_Stamp(*pair) for pair in done[:2])
            self.journal.finish(job.output, job.source, before, after, done[2])
            self.pixels += (record["width"] or 0) * (record["height"] or 0)
        record["notices"] = tuple(record["notices"])
        return Result(self.source.show(job.source), self.out.show(job.output), **record)

    def _settle(self, *, now: bool = False) -> None:
        """Make the journal durable, then let the markers of ended chunks go; not so often that it takes a twentieth of the time."""
        began = time.monotonic()
        if not self._ended or not (now or began - self._settled > max(_SETTLE, 20 * self._cost)):
            return
        self.journal.sync()
        for number in self._ended:
            self.out.remove(self.task.name_marker(number))
        self._ended.clear()
        self._settled = time.monotonic()
        self._cost = self._settled - began


@dataclass(frozen=True)
class _Stamp:
    st_size: int
    st_mtime_ns: int


def _cut_into_chunks(jobs: list[Job], most: int) -> Iterator[list[Job]]:
    """Jobs in their order, cut where a chunk has the most of them, or of their bytes."""
    chunk: list[Job] = []
    size = 0
    for job in jobs:
        if chunk and (len(chunk) == most or size + job.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(job)
        size += job.size
    if chunk:
        yield chunk


def _list_fields(job: Job) -> list[object]:
    return [job.source, job.output, job.size, job.replaces]
