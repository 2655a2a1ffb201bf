"""What does the work of `comdefend purify-dir`: this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.batch.engine import Engine
    from comdefend_cli.batch.options import Options
    from comdefend_cli.batch.ray_cluster import Cluster
    from comdefend_cli.batch.request import Request
    from comdefend_cli.batch.storage.place import Place


def refuse_engine(name: str, source: str, out: str, cluster: Cluster) -> None:
    """Raise :class:`UsageError` for an unknown engine, or for what only the other one can do."""
    from comdefend_cli.batch.ray_cluster import Cluster
    from comdefend_cli.batch.storage.place import is_url

    if name not in ("local", "ray"):
        raise UsageError(f"unknown engine {name!r}: use local or ray")
    if name == "local" and (is_url(source) or is_url(out)):
        raise UsageError("URLs are for --engine ray; give paths of this machine, or add it")
    if name == "local" and cluster != Cluster():
        names = "--workers, --cpus-per-worker, --gpus-per-worker and --ray-address"
        raise UsageError(f"{names} are for --engine ray; add it, or leave them out")


@contextmanager
def open_engine(name: str, source: Place, out: Place, request: Request, options: Options, cluster: Cluster) -> Iterator[Engine]:
    """The planned work, by an engine of that name; errors as of :func:`comdefend_cli.batch.engine.prepare`."""
    if name == "ray":
        from comdefend_cli.batch.ray_cluster import connect
        from comdefend_cli.batch.ray_engine import open_ray

        with connect(cluster) as ray, open_ray(ray, source, out, request, options, cluster) as on_cluster:
            yield on_cluster
    else:
        from comdefend_cli.batch.local import open_local
        from comdefend_cli.batch.networks import Networks
        from comdefend_cli.runtime.machine import limit_threads

        limit_threads()
        with open_local(source, out, Networks(request), options) as here:
            yield here
