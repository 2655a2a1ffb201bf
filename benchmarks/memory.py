#!/usr/bin/env python3
"""Peak memory of `comdefend purify` on a large picture, above the decoded input and output.

    python benchmarks/memory.py [--megapixels 100] [--seconds 240] [--precision NAME] [--json] [--out FILE]

Makes a picture of that size, purifies it by the real command and watches the process (Linux). The shipped network takes minutes
to an hour for 100 megapixels on two cores, so that run is ended after --seconds (0: never); memory does not grow from tile to tile,
which the two readings, after half of the time and at its end, show. What comes after the network, encoding and with --json the
comparison with the input, is measured by a second run to its end, with a network of few channels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from comdefend_cli import weights
from comdefend_cli.device import dtype_name, resolve_precision
from comdefend_cli.model import Architecture, ComDefend

#: Seconds between two looks at the process.
LOOK = 0.05


def peak(process: subprocess.Popen[bytes]) -> int:
    """The process's largest resident memory so far, in bytes, or 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def watch(command: list[str], seconds: float) -> dict[str, Any]:
    """Run a command, for so long at most; its peak memory in MB at half of the time and at the end."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    half = most = 0
    while process.poll() is None and (not seconds or time.monotonic() - began < seconds):
        time.sleep(LOOK)
        most = max(most, peak(process))
        if not half and seconds and time.monotonic() - began > seconds / 2:
            half = most
    finished = process.poll() is not None
    process.kill()
    process.wait()
    if finished and process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return {
        "finished": finished,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb_at_half": round(half / 1e6, 1) if half else None,
        "peak_mb": round(most / 1e6, 1),
    }


def picture(side: int) -> np.ndarray:
    """A square picture of random squares of 8 pixels, uint8 (side, side, 3)."""
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    copies = math.ceil(side / len(tile))
    return np.tile(tile, (copies, copies, 1))[:side, :side]


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true", help="have the command print its record, with PSNR and SSIM, too")
    parser.add_argument("--out", type=Path, help="write the result into a file too")
    arguments = parser.parse_args()
    side = math.ceil(math.sqrt(arguments.megapixels * 1e6))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = picture(side)
        Image.fromarray(pixels).save(folder / "in.png", compress_level=1)
        Image.fromarray(pixels[:32, :32]).save(folder / "small.png")
        weights.save(folder / "narrow.safetensors", ComDefend(Architecture(3, 12, (4,) * 8)), {})
        options = ["--quiet", "--device", "cpu", "--precision", arguments.precision, *["--json"] * arguments.json]

        def purify(source: str, target: str, *more: str) -> list[str]:
            return [sys.executable, "-m", "comdefend_cli", "purify", str(folder / source), str(folder / target), *options, *more]

        runs = {
            "32x32 picture": watch(purify("small.png", "small-out.png"), 0),
            "network": watch(purify("in.png", "a.png"), arguments.seconds),
            "to the end, narrow network": watch(purify("in.png", "b.png", "--weights", str(folder / "narrow.safetensors")), 0),
        }
    decoded = 2 * side * side * 3 / 1e6
    result = {
        "side": side,
        "megapixels": round(side * side / 1e6, 3),
        "precision": dtype_name(resolve_precision(arguments.precision, torch.device("cpu"))),
        "decoded_input_and_output_mb": round(decoded, 1),
        "runs": runs,
        "peak_mb_above_decoded": {name: round(run["peak_mb"] - decoded, 1) for name, run in runs.items() if name != "32x32 picture"},
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
