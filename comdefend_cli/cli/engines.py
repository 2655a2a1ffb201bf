"""What does the work of `comdefend purify-dir`: this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.batch.local import Networks, Work
    from comdefend_cli.batch.plan import Options
    from comdefend_cli.batch.ray_engine import Run
    from comdefend_cli.inference.purifier import Settings


@dataclass(frozen=True)
class RayOptions:
    """Of the command line, for a cluster."""

    address: str | None
    workers: int | None
    cpus: float | None
    gpus: float | None

    @property
    def given(self) -> bool:
        """Whether any was."""
        return any(value is not None for value in (self.address, self.workers, self.cpus, self.gpus))


@dataclass(frozen=True)
class Asked:
    """What is to be done: two paths or URLs, and how."""

    source: str
    out: str
    weights: str | None
    device: str
    precision: str
    backend: str
    settings: Settings
    options: Options


def refuse(engine: str, source: str, out: str, cluster: RayOptions) -> None:
    """Raise :class:`UsageError` for an unknown engine, or for what only the other one can do."""
    from comdefend_cli.batch import storage as places

    if engine not in ("local", "ray"):
        raise UsageError(f"unknown engine {engine!r}: use local or ray")
    if engine == "local" and (places.is_url(source) or places.is_url(out)):
        raise UsageError("URLs are for --engine ray; give paths of this machine, or add it")
    if engine == "local" and cluster.given:
        names = "--workers, --cpus-per-worker, --gpus-per-worker and --ray-address"
        raise UsageError(f"{names} are for --engine ray; add it, or leave them out")


@contextmanager
def opened(engine: str, asked: Asked, cluster: RayOptions) -> Iterator[tuple[Work | Run, Networks]]:
    """The planned work, and what tells of its networks."""
    with _on_cluster(asked, cluster) if engine == "ray" else _here(asked) as both:
        yield both


@contextmanager
def _here(asked: Asked) -> Iterator[tuple[Work, Networks]]:
    from comdefend_cli.batch import local as folder
    from comdefend_cli.runtime.machine import limit_threads

    limit_threads()
    networks = folder.Networks(
        asked.weights, device=asked.device, precision=asked.precision, backend=asked.backend, settings=asked.settings
    )
    with folder.opened(Path(asked.source), Path(asked.out), networks, asked.options) as work:
        yield work, networks


@contextmanager
def _on_cluster(asked: Asked, options: RayOptions) -> Iterator[tuple[Run, Networks]]:
    from comdefend_cli.batch import ray_engine as with_ray
    from comdefend_cli.batch import storage as places
    from comdefend_cli.batch.ray_worker import Order

    cpus = 1.0 if options.cpus is None else options.cpus
    cluster = with_ray.Cluster(options.address, options.workers, cpus, options.gpus)
    order = Order(asked.weights, asked.device, asked.precision, asked.backend, asked.settings)
    source, out = places.of(asked.source), places.of(asked.out)
    with with_ray.connected(cluster) as ray, with_ray.opened(ray, source, out, order, asked.options, cluster) as both:
        yield both
