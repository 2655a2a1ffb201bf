"""A Ray cluster to compute on: reached or started, and divided into workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.runtime.extras import require

#: The address of a cluster that is started on this machine for the run, and the least share of a resource that Ray knows.
LOCAL = "local"
LEAST = 1e-4


@dataclass(frozen=True)
class Cluster:
    """Where and with what to compute.

    Attributes:
        address: of a running cluster, as `ray.init` takes it; None for `RAY_ADDRESS`, or one on this machine.
        workers: processes that hold the networks, or None for as many as the cluster has room for.
        cpus, gpus: of each worker; fractions let several share one. None is 1 CPU, and 1 GPU where there are any and the device may be one.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray names them."""
        return {"num_cpus": 1.0 if self.cpus is None else self.cpus, "num_gpus": self.gpus or 0.0}


@contextmanager
def connect(cluster: Cluster) -> Iterator[Any]:
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
    address = _find_address(cluster)
    try:
        with _silence():
            ray.init(address, log_to_driver=False, logging_level="ERROR", **({"include_dashboard": False} if address == LOCAL else {}))
    except Exception as error:  # Ray raises whatever, a bare `Exception` among it where its processes are slow to start.
        where = "this machine" if address == LOCAL else address
        raise ComdefendError(f"cannot reach a Ray cluster at {where}: {explain(error)}") from error
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray sets its own.
    try:
        yield ray
    finally:
        ray.shutdown()


def fit_cluster(ray: Any, cluster: Cluster, device: str) -> Cluster:
    """The cluster with the number of workers and their GPUs settled, by what there is.

    Raises:
        UsageError: there is no room for one worker.
    """
    there = ray.cluster_resources()
    cpus, gpus = cluster.resources["num_cpus"], cluster.gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) and device != "cpu" else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker is a fraction of one or a whole number, not {gpus:g}")
    for need in (cpus, gpus):
        if not (need == 0 or need >= LEAST):
            raise UsageError(f"a worker takes 0, or {LEAST:g} or more, of a resource, not {need:g}")
    room = min((there.get(name, 0) / need for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0), default=1.0)
    if room < 1 and (cluster.workers is None or _find_address(cluster) == LOCAL):  # Another cluster may grow.
        about = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        raise UsageError(f"the cluster has {about}, not enough for one worker of {cpus:g} and {gpus:g}; ask for less")
    return replace(cluster, workers=cluster.workers or int(room + 1e-9), gpus=gpus)


def fetch(ray: Any, reference: Any) -> Any:
    """What a task on the cluster returned.

    Raises:
        ComdefendError: what it raised.
    """
    try:
        return ray.get(reference)
    except Exception as error:
        raise translate(error) from error


def translate(error: BaseException) -> ComdefendError:
    """What a worker raised, as an error of ours; Ray's own text is a traceback of many lines."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ComdefendError):
        return type(cause)(*cause.args)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ComdefendError(f"the Ray workers cannot work: {type(cause).__name__}: {lines[-1] if lines else ''}")


def _find_address(cluster: Cluster) -> str:
    """Where the cluster is; not left to Ray, which would join whatever it finds on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or LOCAL


@contextmanager
def _silence() -> Iterator[None]:
    """Without what Ray's own processes and libraries write to standard error as they begin, past Python; faults are raised."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
