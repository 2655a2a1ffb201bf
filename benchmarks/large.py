#!/usr/bin/env python3
"""Memory and seconds of `comdefend purify` against megapixels, in strips and whole.

    python benchmarks/large.py [--megapixels 1 3 10 30 100] [--ways strips whole] [--weights narrow|NAME] [--seconds 200] [--json]

Makes images of those sizes, purifies each by the real command and watches the process (Linux). The default network is a narrow one
(4 channels a layer), so that the whole curve takes minutes: it shows what reading, strips and writing cost. The shipped network's
activations do not depend on the image's size either: --weights comdefend-12bit measures them. That takes minutes to an hour for 100
megapixels on two cores; --seconds ends a run earlier, and memory after half of that time, beside that at its end, shows whether it grows.
A line is fitted to seconds and memory against megapixels by least squares; r2 near 1 says that the time is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import Run, purify, watch

from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import save_weights
from comdefend_cli.runtime.extras import require


def make(path: Path, side: int) -> None:
    """A square image of squares of 8 pixels in random colours, written in strips so that making it takes little memory."""
    pyvips = require("pyvips", extra="large")
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    copies = math.ceil(side / len(tile))
    image = pyvips.Image.new_from_array(tile).replicate(copies, copies).crop(0, 0, side, side)
    image.write_to_file(str(path), **({"compression": 1} if path.suffix == ".png" else {"compression": "deflate"}))


def line(points: list[tuple[float, float]]) -> dict[str, float]:
    """Slope, intercept and r2 of the best line."""
    x, y = np.array(points).T
    slope, start = np.polyfit(x, y, 1)
    residual, spread = ((y - slope * x - start) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return {"slope": round(float(slope), 4), "intercept": round(float(start), 3), "r2": round(float(1 - residual / spread), 5)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 3, 10, 30, 100])
    parser.add_argument("--ways", nargs="+", choices=("strips", "whole"), default=["strips", "whole"])
    parser.add_argument("--weights", default="narrow")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=0.0, help="end each run after so long; default: never")
    parser.add_argument("--format", choices=("png", "tiff"), default="png")
    parser.add_argument("--folder", type=Path, help="where to put the images; default: the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="write it into a file too")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        options = {"precision": arguments.precision, "weights": arguments.weights}
        if arguments.weights == "narrow":
            options["weights"] = str(folder / "narrow.safetensors")
            save_weights(Path(options["weights"]), ComDefend(PaperArchitecture(3, 12, (4,) * 8)), {})
        for megapixels in arguments.megapixels:
            side = math.ceil(math.sqrt(megapixels * 1e6))
            source = folder / f"in.{arguments.format}"
            make(source, side)
            for way in arguments.ways:
                flag = {"strips" if way == "strips" else "no_strips": True}
                run = watch(
                    purify(source, folder / f"{way}.{arguments.format}", **options, **flag, max_megapixels=2 * megapixels + 1),
                    arguments.seconds,
                )
                rows.append(row(side, way, run))
                if not arguments.json:
                    print(rows[-1], flush=True)
    lines = {}
    for way in arguments.ways:
        points = [row for row in rows if row["way"] == way and row["finished"]]
        if len(points) > 1:
            lines[way] = {key: line([(row["megapixels"], row[key]) for row in points]) for key in ("seconds", "peak_mb")}
    result = {
        "rows": rows,
        "line_against_megapixels": lines,
        "weights": arguments.weights,
        "precision": arguments.precision,
        "format": arguments.format,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else json.dumps(lines, indent=1))


def row(side: int, way: str, run: Run) -> dict[str, Any]:
    """What a run took; memory above the decoded image and its output, which an image that is taken whole needs."""
    decoded = 2 * 3 * side**2 / 1e6
    return {
        "megapixels": round(side**2 / 1e6, 3),
        "way": way,
        "seconds": round(run.seconds, 2),
        "peak_mb": round(run.peak_mb, 1),
        "peak_mb_above_decoded": round(run.peak_mb - decoded, 1) if way == "whole" else None,
        "finished": run.finished,
        "peak_mb_at_half": run.peak_mb_at_half and round(run.peak_mb_at_half, 1),
    }


if __name__ == "__main__":
    main()
