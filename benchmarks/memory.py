#!/usr/bin/env python3
"""Peak memory of `comdefend purify` on a large picture, above the decoded input and output.

    python benchmarks/memory.py [--megapixels 100] [--seconds 240]

Makes a picture of that size, purifies it by the real command and watches the process. A picture of 100 megapixels takes an hour
on two cores, so the run is ended after --seconds (0: never); memory does not grow from tile to tile, which the two readings, after
half of the time and at its end, show. What comes after the network, encoding, is measured by a second run to its end, with a
network of few channels.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from comdefend_cli import weights
from comdefend_cli.model import Architecture, ComDefend


def peak(process: subprocess.Popen[bytes]) -> int:
    """The process's largest resident memory so far, in bytes (Linux)."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def watch(command: list[str], seconds: float) -> dict[str, float | bool]:
    """Run a command, for so long at most; its peak memory in MB at half of the time and at the end."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    half = most = 0
    while process.poll() is None and (not seconds or time.monotonic() - began < seconds):
        time.sleep(0.2)
        most = max(most, peak(process))
        if not half and seconds and time.monotonic() - began > seconds / 2:
            half = most
    finished = process.poll() is not None
    process.kill()
    process.wait()
    return {"finished": finished, "seconds": round(time.monotonic() - began, 1), "peak_mb_at_half": half / 1e6, "peak_mb": most / 1e6}


def main() -> None:
    """Measure both runs and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=240)
    arguments = parser.parse_args()
    side = math.ceil(math.sqrt(arguments.megapixels * 1e6))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        pixels = np.tile(tile, (math.ceil(side / 512), math.ceil(side / 512), 1))[:side, :side]
        Image.fromarray(pixels).save(folder / "in.png", compress_level=1)
        weights.save(folder / "narrow.safetensors", ComDefend(Architecture(3, 12, (4,) * 8)), {})
        command = [sys.executable, "-m", "comdefend_cli", "purify", str(folder / "in.png"), "--quiet"]
        small = [sys.executable, "-m", "comdefend_cli", "purify", str(folder / "small.png"), str(folder / "small-out.png"), "--quiet"]
        Image.fromarray(pixels[:32, :32]).save(folder / "small.png")
        decoded = 2 * side * side * 3 / 1e6
        runs = {
            "32x32 picture": watch(small, 0),
            "network": watch([*command, str(folder / "a.png")], arguments.seconds),
            "to the end, narrow network": watch([*command, str(folder / "b.png"), "--weights", str(folder / "narrow.safetensors")], 0),
        }
    above = {name: round(float(run["peak_mb"]) - decoded, 1) for name, run in runs.items() if name != "32x32 picture"}
    about = {"torch": torch.__version__, "machine": platform.machine(), "side": side}
    print(json.dumps({"decoded_input_and_output_mb": decoded, "runs": runs, "peak_mb_above_decoded": above, **about}, indent=1))


if __name__ == "__main__":
    main()
