#!/usr/bin/env python3
"""How `comdefend train` scales from one process to two, each with one thread, on one machine (gloo over loopback).

    python benchmarks/torchrun.py [--steps 60] [--batch-size 32] [--json]

Both train with the same batch, which two processes share; the ratio is of images a second in the steps after the first --skip.
2 would be perfect. The images are pieces of those that scikit-image ships; only the rate is of interest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from folder import sources


def make_images(target: Path, count: int = 200) -> None:
    """Pieces of 64x64 pixels of photographs, of which training takes crops of 32x32: few, so that the last measurement is short."""
    target.mkdir()
    for index, image in zip(range(count), itertools.cycle(sources()), strict=False):
        x, y = (37 * index % (side - 64) for side in image.size)
        image.crop((x, y, x + 64, y + 64)).save(target / f"{index:03}.png")


def train(processes: int, data: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training run; images a second over its later steps, and the loss at its end."""
    command = ["-m", "comdefend_cli", "train", "--data", str(data), "--out", str(out)]
    command += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size), "--validate-every", str(arguments.steps)]
    command += ["--precision", arguments.precision, "--device", "cpu", "--quiet"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    else:
        launcher = [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {process.stderr[-2000:]}")
    history = json.loads(out.with_suffix(".json").read_text())["history"]
    first, last = (next(report for report in history if report["step"] >= step) for step in (arguments.skip, arguments.steps))
    # A report's rate is that since the beginning.
    images = [report["step"] * arguments.batch_size for report in (first, last)]
    seconds = [count / report["images_per_second"] for count, report in zip(images, (first, last), strict=True)]
    rate = (images[1] - images[0]) / (seconds[1] - seconds[0])
    return {"images_per_second": round(rate, 3), "last_loss": round(last["loss"], 6)}


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=10, help="steps at the beginning that do not count")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true", help="on one line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "images"
        make_images(data)
        one, two = (train(count, data, Path(name) / f"{count}.safetensors", arguments) for count in (1, 2))
    result = {
        "one_process": one,
        "two_processes": two,
        "ratio": round(two["images_per_second"] / one["images_per_second"], 4),
        "threads_a_process": 1,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
