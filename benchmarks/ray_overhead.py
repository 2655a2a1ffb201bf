#!/usr/bin/env python3
"""What `purify-dir --engine ray` costs above the local engine: seconds to begin, and milliseconds an image.

    python benchmarks/ray_overhead.py [--images 400 4000] [--workers 2] [--json]

A local cluster purifies folders of two sizes of 32x32 PNGs with a narrow network (4 channels a layer), so that almost all time is what the
engine itself takes; the local engine does the same. Of each, the slope between the two sizes is its cost an image, and what remains of the
first its cost to begin (Ray: processes of the cluster and its workers, each of which imports PyTorch). On a cluster the slope is shared by
the workers, but for what the first process does: it plans, and writes the journal (`driver`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from folder import make_thumbnails

from comdefend_cli.batch.local import open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.ray_cluster import Cluster, connect
from comdefend_cli.batch.ray_engine import open_ray
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import save_weights
from comdefend_cli.runtime.machine import count_cores


def local(source: Path, out: Path, path: Path) -> float:
    """Seconds of the local engine, planning included."""
    began = time.perf_counter()
    with open_local(Folder(source), Folder(out), Networks(Request(str(path), "cpu", "float32")), Options()) as work:
        check(Counter(result.status for result in work.results()))
    return time.perf_counter() - began


def on_cluster(source: Path, out: Path, path: Path, workers: int) -> tuple[float, float]:
    """Seconds of the Ray engine, planning and the cluster's start and end included; and of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    request = Request(str(path), "cpu", "float32")
    cluster = Cluster("local", workers, cpus=count_cores() / workers if count_cores() < workers else 1.0)
    with (
        connect(cluster) as ray,
        open_ray(ray, Folder(source), Folder(out), request, Options(), cluster) as work,
    ):
        check(Counter(result.status for result in work.results()))
    return time.perf_counter() - began, time.process_time() - cpu


def check(counts: Counter[str]) -> None:
    """All must be done."""
    if set(counts) != {"done"}:
        raise SystemExit(f"not all done: {counts}")


def slope(small: float, large: float, sizes: list[int]) -> tuple[float, float]:
    """Milliseconds an image, and seconds to begin."""
    each = (large - small) / (sizes[1] - sizes[0])
    return round(each * 1e3, 4), round(small - each * sizes[0], 3)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[400, 4000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"local": [], "ray": [], "driver": []}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        path = base / "narrow.safetensors"
        save_weights(path, ComDefend(PaperArchitecture(3, 12, (4,) * 8)), {})
        for count in arguments.images:
            source = base / f"in-{count}"
            source.mkdir()
            make_thumbnails(source, count)
            if not seconds["local"]:  # Imports and kernels of this process are there from now on.
                local(source, base / "local", path)
                on_cluster(source, base / "ray", path, arguments.workers)
            seconds["local"].append(local(source, base / f"local-{count}", path))
            whole, driver = on_cluster(source, base / f"ray-{count}", path, arguments.workers)
            seconds["ray"].append(whole)
            seconds["driver"].append(driver)
    result: dict[str, Any] = {}
    for kind, (small, large) in seconds.items():
        each, begin = slope(small, large, arguments.images)
        result[f"{kind}_ms_a_image"], result[f"{kind}_seconds_to_begin"] = each, begin
    result |= {
        "ray_above_local_ms_a_image": round(result["ray_ms_a_image"] - result["local_ms_a_image"], 4),
        "images": arguments.images,
        "workers": arguments.workers,
        "cores": count_cores(),
        "ray": __import__("ray").__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
