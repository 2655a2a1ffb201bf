#!/usr/bin/env python3
"""What a command takes before it does anything.

    python benchmarks/startup.py [--runs 15] [--json]

`comdefend --help` against a Typer program with one command of one option that does nothing, in turn; the ratio is of the two medians.
`comdefend purify` on a 32x32 image, under `python -X importtime`: of the time of the whole process, the shares of importing torch
with all that it imports, of importing each of our own modules (without what they import), and of everything that is not importing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BARE = """
import typer

app = typer.Typer()


@app.command()
def hello(name: str = typer.Option("world", help="Whom to greet.")) -> None:
    "Greet somebody."
    print(name)


app()
"""
#: The default installation's backend, whatever else is installed.
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "COMDEFEND_BACKEND": "torch"}


def seconds(command: list[str]) -> float:
    """Of a whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return time.perf_counter() - began


def help_ratio(folder: Path, runs: int) -> dict[str, Any]:
    """Both programs' help, in turn, after one run of each that counts for nothing."""
    bare = folder / "bare.py"
    bare.write_text(BARE)
    ours = [sys.executable, "-c", "from comdefend_cli.cli import main; main()", "--help"]
    theirs = [sys.executable, str(bare), "--help"]
    times = [(seconds(ours), seconds(theirs)) for _ in range(runs + 1)][1:]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    return {"comdefend_help_seconds": round(a, 4), "bare_typer_help_seconds": round(b, 4), "ratio": round(a / b, 4), "runs": runs}


def imports(lines: list[str]) -> list[tuple[str, float, float]]:
    """Name, own and cumulative seconds of each import that `-X importtime` tells of."""
    found = []
    for line in lines:
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and len(parts) == 3 and parts[0].strip().isdigit():
            found.append((parts[2].strip(), int(parts[0]) / 1e6, int(parts[1]) / 1e6))
    return found


def purify_shares(folder: Path, runs: int) -> dict[str, Any]:
    """Of the median run."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "in.png")
    command = [sys.executable, "-X", "importtime", "-m", "comdefend_cli", "purify", str(folder / "in.png"), str(folder / "out.png")]
    measured = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.run([*command, "--quiet", "--overwrite"], check=True, capture_output=True, text=True, env=ENVIRONMENT)
        measured.append((time.perf_counter() - began, imports(process.stderr.splitlines())))
    whole, found = sorted(measured[1:], key=lambda run: run[0])[(runs - 1) // 2]
    torch = max((cumulative for name, _, cumulative in found if name == "torch"), default=0.0)
    ours = {name: own for name, own, _ in found if name.split(".")[0] == "comdefend_cli"}
    largest = max(ours, key=lambda name: ours[name])
    total = sum(own for _, own, _ in found)
    return {
        "seconds": round(whole, 4),
        "share_of_importing_torch": round(torch / whole, 4),
        "share_of_importing_all": round(total / whole, 4),
        "share_of_not_importing": round(1 - total / whole, 4),
        "our_modules": {name: round(own / whole, 5) for name, own in sorted(ours.items(), key=lambda pair: -pair[1])[:8]},
        "largest_of_ours": largest,
        "largest_share_of_ours": round(ours[largest] / whole, 5),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = {
            "help": help_ratio(Path(name), arguments.runs),
            "purify_32x32": purify_shares(Path(name), max(arguments.runs // 3, 1)),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        }
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
