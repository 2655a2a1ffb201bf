"""`purify-dir` on many machines: Ray Data hands blocks of images to workers, each of which holds the networks.

    with with_ray.connected(cluster) as ray, with_ray.opened(ray, source, out, order, options, cluster) as work:
        for result in work.results():
            ...

A worker (:mod:`comdefend_cli.batch.ray_worker`) does with its block what :class:`comdefend_cli.batch.local.Work` does with a folder.
Only this process writes the journal.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.local import Networks, Result, adopt, known, prepared
from comdefend_cli.batch.plan import Job, Options, Plan
from comdefend_cli.batch.ray_worker import Order, Task, Worker, look
from comdefend_cli.batch.storage import Folder, Place
from comdefend_cli.errors import ComdefendError, UsageError, reason
from comdefend_cli.network.registry import load_weights
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.extras import require

#: Most images and bytes of input in a block: what a dead worker's successor does again at most.
BLOCK_IMAGES = 256
BLOCK_BYTES = 32 * 2**20
#: Blocks for each worker at least, where there are images enough, so that all end at about the same time.
BLOCKS_A_WORKER = 4
#: The address of a cluster that is started on this machine for the run, and the least share of a resource that Ray knows.
LOCAL = "local"
LEAST = 1e-4
#: Seconds between two looks at whether to stop, and at least between two times that the journal is made durable.
_LOOK = 0.1
_SETTLE = 1.0


@dataclass(frozen=True)
class Cluster:
    """Where and with what to compute.

    Attributes:
        address: of a running cluster, as `ray.init` takes it; None for `RAY_ADDRESS`, or one on this machine.
        workers: processes that hold the networks, or None for as many as the cluster has room for.
        cpus, gpus: of each worker; fractions let several share one. gpus None is 1 where the cluster has any and the device may be one.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float | None = None


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """The `ray` module, connected; a connection that is there is used, and left.

    Raises:
        UsageError: Ray is not installed.
        ComdefendError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # It would report to its makers.
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # It has an error message for actors that may be restarted at all.
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    address = _address(cluster)
    try:
        with _silent():
            ray.init(address, log_to_driver=False, logging_level="ERROR", **({"include_dashboard": False} if address == LOCAL else {}))
    except Exception as error:  # Ray raises whatever, a bare `Exception` among it where its processes are slow to start.
        raise ComdefendError(f"cannot reach a Ray cluster at {'this machine' if address == LOCAL else address}: {reason(error)}") from error
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray sets its own.
    try:
        yield ray
    finally:
        ray.shutdown()


def _address(cluster: Cluster) -> str:
    """Where the cluster is; not left to Ray, which would join whatever it finds on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or LOCAL


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray's own processes and libraries write to standard error as they begin, past Python; faults are raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class ClusterNetworks(Networks):
    """What tells the results of a cluster's networks from others, asked of one of its workers."""

    def __init__(self, ray: Any, order: Order, cluster: Cluster) -> None:
        self.loaded = load_weights(order.weights) if order.weights else None
        super().__init__(self.loaded, device="cpu", precision="float32", settings=order.settings)
        seen: tuple[str, str, str] = _asked(ray, ray.remote(**_resources(cluster))(look).remote(order, self.loaded))
        place, self._precision, self._backend = seen
        self._where = f"{cluster.workers} Ray workers, {place}"

    @property
    def precision(self) -> str:
        """The workers'; the networks here only stand for theirs."""
        return self._precision

    @property
    def backend(self) -> str:
        """The workers', likewise."""
        return self._backend

    @property
    def where(self) -> str:
        """How many workers, and the device of one."""
        return self._where


@contextmanager
def opened(
    ray: Any, source: Place, out: Place, order: Order, options: Options | None = None, cluster: Cluster | None = None
) -> Iterator[tuple[Run, ClusterNetworks]]:
    """As :func:`comdefend_cli.batch.local.opened`, for places that all machines of the cluster reach by the same path or URL.

    Raises:
        UsageError: as there; or the cluster has not what a worker needs.
        ComdefendError: a place cannot be read or written.
    """
    options = options or Options()
    cluster = _sized(ray, cluster or Cluster(), order.device)
    networks = ClusterNetworks(ray, order, cluster)
    with prepared(source, out, networks, options) as (planned, state):
        # What "auto" is on one worker, all must do: the pixels would differ.
        order = replace(order, precision=networks.precision, backend=networks.backend)
        task = Task(_everywhere(source), _everywhere(out), order, options, cluster.cpus, secrets.token_hex(4))
        yield Run(ray, (source, out), task, planned, state, cluster, networks.loaded), networks


def _everywhere(place: Place) -> str:
    """A place's name that does not depend on where a process runs."""
    return str(place.root.absolute()) if isinstance(place, Folder) else place.url


class Run:
    """A planned run on a cluster; as :class:`comdefend_cli.batch.local.Work`, whose attributes and methods it has."""

    def __init__(
        self,
        ray: Any,
        places: tuple[Place, Place],
        task: Task,
        plan: Plan,
        state: Journal,
        cluster: Cluster,
        loaded: Weights | None,
    ) -> None:
        self.plan = plan
        self.pixels = 0
        self._source, self._out = places
        self._ray, self._task, self._state, self._cluster, self._loaded = ray, task, state, cluster, loaded
        self._stop_asked = False
        self._ended: list[int] = []  # Blocks whose markers wait for the journal to be durable.
        self._settled, self._cost = time.monotonic(), 0.0

    def stop(self) -> None:
        """End soon; blocks in work are begun again by the next run. May be called from a signal handler."""
        self._stop_asked = True

    def results(self) -> Iterator[Result]:
        """One result an image, first those that are kept, the rest block by block; fewer after :meth:`stop`.

        Raises:
            ComdefendError: the workers cannot work at all.
        """
        yield from known(self.plan, self._source, self._out)
        most = len(self.plan.jobs) // (BLOCKS_A_WORKER * (self._cluster.workers or 1))
        blocks = dict(enumerate(_blocks(self.plan.jobs, max(1, min(BLOCK_IMAGES, most)))))
        try:
            for row in self._rows(blocks) if blocks else ():
                jobs = blocks.pop(int(row["number"]), [])  # A row comes again if Ray lost it.
                for job, record in zip(jobs, json.loads(row["results"]) if jobs else [], strict=True):
                    yield self._result(job, record)
                if left := json.loads(row["left"]):
                    self._state.begin(left)  # The marker goes; what an attempt that died may have left stays ours.
                self._ended.append(int(row["number"]))
                self._settle()
            if not self._stop_asked:
                for job in (job for jobs in blocks.values() for job in jobs):
                    yield Result(self._source.show(job.source), self._out.show(job.output), "failed", "Ray lost it", job.size)
        finally:
            self._settle(now=True)
            adopt(self._out, self._state)

    def _rows(self, blocks: dict[int, list[Job]]) -> Iterator[dict[str, Any]]:
        """Rows of the workers as they come, until the end or :meth:`stop`."""
        rows: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()
        items = [{"number": number, "jobs": json.dumps([_fields(job) for job in jobs])} for number, jobs in blocks.items()]
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
                raise _one_line(row) from row
            yield row

    def _drive(self, items: list[dict[str, Any]], rows: SimpleQueue[dict[str, Any] | BaseException | None]) -> None:
        """Let Ray Data go through the blocks. In a thread of its own, since nothing else wakes who waits for Ray."""
        try:
            loaded = None if self._loaded is None else self._ray.put(self._loaded)
            data = self._ray.data
            context = data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            mapped = data.from_items(items, override_num_blocks=len(items)).map(
                Worker,
                fn_constructor_kwargs={"task": self._task, "loaded": loaded},
                compute=data.ActorPoolStrategy(size=self._cluster.workers),
                **_resources(self._cluster),
            )
            for row in mapped.iter_rows():
                rows.put(row)
                if self._stop_asked:
                    break
            rows.put(None)
        except BaseException as error:
            rows.put(error)

    def _result(self, job: Job, record: dict[str, Any]) -> Result:
        done = record.pop("done")
        if done is not None:
            before, after = (_Stamp(*pair) for pair in done[:2])
            self._state.done(job.output, job.source, before, after, done[2])
            self.pixels += (record["width"] or 0) * (record["height"] or 0)
        record["notices"] = tuple(record["notices"])
        return Result(self._source.show(job.source), self._out.show(job.output), **record)

    def _settle(self, *, now: bool = False) -> None:
        """Make the journal durable, then let the markers of ended blocks go; not so often that it takes a twentieth of the time."""
        began = time.monotonic()
        if not self._ended or not (now or began - self._settled > max(_SETTLE, 20 * self._cost)):
            return
        self._state.sync()
        for number in self._ended:
            self._out.remove(self._task.marker(number))
        self._ended.clear()
        self._settled = time.monotonic()
        self._cost = self._settled - began


@dataclass(frozen=True)
class _Stamp:
    st_size: int
    st_mtime_ns: int


def _blocks(jobs: list[Job], most: int) -> Iterator[list[Job]]:
    """Jobs in their order, cut where a block has the most of them, or of their bytes."""
    block: list[Job] = []
    size = 0
    for job in jobs:
        if block and (len(block) == most or size + job.size > BLOCK_BYTES):
            yield block
            block, size = [], 0
        block.append(job)
        size += job.size
    if block:
        yield block


def _fields(job: Job) -> list[object]:
    return [job.source, job.output, job.size, job.replaces]


def _resources(cluster: Cluster) -> dict[str, float]:
    return {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus or 0.0}


def _sized(ray: Any, cluster: Cluster, device: str) -> Cluster:
    """The cluster with the number of workers and their GPUs settled.

    Raises:
        UsageError: there is no room for one worker.
    """
    there = ray.cluster_resources()
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) and device != "cpu" else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker is a fraction of one or a whole number, not {gpus:g}")
    for need in (cluster.cpus, gpus):
        if not (need == 0 or need >= LEAST):
            raise UsageError(f"a worker takes 0, or {LEAST:g} or more, of a resource, not {need:g}")
    room = min((there.get(name, 0) / need for name, need in (("CPU", cluster.cpus), ("GPU", gpus)) if need > 0), default=1.0)
    if room < 1 and (cluster.workers is None or _address(cluster) == LOCAL):  # Another cluster may grow.
        about = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        raise UsageError(f"the cluster has {about}, not enough for one worker of {cluster.cpus:g} and {gpus:g}; ask for less")
    return replace(cluster, workers=cluster.workers or int(room + 1e-9), gpus=gpus)


def _asked(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except Exception as error:
        raise _one_line(error) from error


def _one_line(error: BaseException) -> ComdefendError:
    """What a worker raised, as an error of ours; Ray's own text is a traceback of many lines."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ComdefendError):
        return type(cause)(*cause.args)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ComdefendError(f"the Ray workers cannot work: {type(cause).__name__}: {lines[-1] if lines else ''}")
