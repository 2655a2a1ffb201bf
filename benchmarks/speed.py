#!/usr/bin/env python3
"""Speed of purifying one image on the CPU, ours and others', measured in turns in one run.

    python benchmarks/speed.py [IMAGE] [--size 1024] [--int8 FILE] [--json] [--out FILE]
    python benchmarks/speed.py --curve [--out FILE]                  megapixels a second against the side of a tile, and the size of a band
    python benchmarks/speed.py --shapes [--out FILE]                 the same against the images of a batch, and the number of threads
    python benchmarks/speed.py --growth 1 4 16 [--out FILE]          seconds and memory of the whole command against megapixels

Networks are timed within this process on a crop of --crop pixels a side, since their cost a pixel does not depend on the image's size;
the authors' way on --patches of its patches; `comdefend purify` as a process of its own, from start to written file, on --size pixels a
side. Every round measures all in turn, so that a disturbance meets all; the table has medians. A megapixel is 10^6 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import speed_report
import torch
from PIL import Image
from processes import Run, purify, watch
from speed_rivals import Method, art_defences, authors_way, flops_a_pixel, limits, plain_pytorch
from torch import Tensor

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends import bands
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.network.metrics import psnr
from comdefend_cli.network.registry import DEFAULT_COLOR, load_weights
from comdefend_cli.runtime.device import cpu_has_bfloat16

PACKAGES = ("torch", "openvino", "nncf", "onnxruntime", "adversarial-robustness-toolbox", "numpy", "pillow")
TILES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
#: Weights of the paper's networks, which are the rivals': the default before `comdefend-fast`.
PAPER = "comdefend-12bit-denoise"
#: Pixels of a band a thread, see `comdefend_cli.backends.bands`.
BANDS = tuple(2**power for power in range(10, 18))
#: Images of a batch, and pixels of a side that they have; and how many there are in all.
BATCHES, THUMBNAIL, THUMBNAILS = (1, 4, 16, 32, 64, 128, 256), 32, 256


def image(path: Path | None, size: int) -> np.ndarray:
    """A square of an image, uint8 (size, size, 3); a smaller image is mirrored until it is large enough."""
    if path is None:
        import skimage

        path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    pixels = np.broadcast_to(read_image(path).pixels, (*read_image(path).pixels.shape[:2], 3))
    missing = [(0, max(0, size - side)) for side in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, (*missing, (0, 0)), "symmetric")[:size, :size])


def variants(int8: Path | None) -> list[tuple[str, dict[str, str]]]:
    """Ours, the default installation's default first: a name, and what it is for `Purifier.from_pretrained` and the command."""
    found = [("default installation", {"backend": "torch", "precision": "auto"})]
    found.append(("PyTorch float32", {"backend": "torch", "precision": "float32"}))
    found.append((PAPER, {"backend": "torch", "precision": "auto", "weights": PAPER}))
    if _version("openvino"):
        precisions = ("float32", *["bfloat16"] * cpu_has_bfloat16())
        found += [(f"OpenVINO {name}", {"backend": "openvino", "precision": name}) for name in precisions]
        if int8:
            found.append(("OpenVINO int8", {"backend": "openvino", "precision": "int8", "weights": str(int8)}))
    return found


def rapid(int8: Path | None) -> list[tuple[str, dict[str, str]]]:
    """The variants but those in float32."""
    return [(name, options) for name, options in variants(int8) if "float32" not in options["precision"] and name != PAPER]


def built(options: dict[str, str], settings: Settings | None = None) -> Purifier:
    """The purifier of a variant."""
    given = options.get("weights", DEFAULT_COLOR)
    return Purifier.from_pretrained(given, device="cpu", settings=settings, **_without(options, "weights"))


def networks(x: Tensor, kinds: list[tuple[str, dict[str, str]]]) -> list[Method]:
    """Ours within this process, on uint8 (1, 3, H, W)."""
    made = []
    for name, options in kinds:
        purifier = built(options)
        made.append(Method(f"ours, network: {name}", lambda purifier=purifier: purifier(x), x[0, 0].numel(), f"{x.shape[2]}x{x.shape[3]}"))
    return made


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything in turns, `--rounds` times."""
    pixels = image(arguments.image, arguments.size)
    kinds = variants(arguments.int8)
    x = torch.from_numpy(pixels[: arguments.crop, : arguments.crop].copy()).permute(2, 0, 1)[None]
    model, paper = load_weights(DEFAULT_COLOR).model, load_weights(PAPER).model
    scaled = x.float() / 255
    methods = [
        *limits(model),
        authors_way(paper, scaled, arguments.patches),
        *plain_pytorch(paper, scaled),
        *art_defences(scaled, arguments.small),
        *networks(x, kinds),
    ]
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    runs: dict[str, list[Run]] = {name: [] for name, _ in kinds}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.png"
        Image.fromarray(pixels).save(source)
        for round_ in range(arguments.rounds):
            for method in methods:
                if round_ == 0:
                    method.call()  # The first call sets up.
                began = time.perf_counter()
                method.call()
                times[method.name].append(time.perf_counter() - began)
                tell(f"round {round_ + 1}: {method.name}: {times[method.name][-1]:.2f} s")
            for name, options in kinds:
                runs[name].append(watch(purify(source, Path(folder) / f"{name}.png", **options)))
                tell(f"round {round_ + 1}: comdefend purify, {name}: {runs[name][-1].seconds:.1f} s")
        quality = {name: decibels(Path(folder) / f"{name}.png", Path(folder) / "PyTorch float32.png") for name, _ in kinds if name != PAPER}
    rows = [row(method, times[method.name]) for method in methods]
    commands = [command_row(name, runs[name], pixels.shape[0] ** 2, quality.get(name)) for name, _ in kinds]
    return {**summary(rows, commands, flops_a_pixel(model)), "methods": rows, "commands": commands, **about(arguments)}


def row(method: Method, times: list[float]) -> dict[str, Any]:
    """The median rate of a method in megapixels a second, with the lowest and the highest."""
    rates = sorted(method.pixels / 1e6 / seconds for seconds in times)
    return {
        "name": method.name,
        "megapixels_per_second": _short(statistics.median(rates)),
        "lowest": _short(rates[0]),
        "highest": _short(rates[-1]),
        "measured_on": method.note,
    }


def command_row(name: str, runs: list[Run], pixels: int, quality: float | None) -> dict[str, Any]:
    """The median of whole commands."""
    seconds = sorted(run.seconds for run in runs)
    return {
        "name": name,
        "seconds": round(statistics.median(seconds), 2),
        "fastest_seconds": round(seconds[0], 2),
        "slowest_seconds": round(seconds[-1], 2),
        "megapixels_per_second": _short(pixels / 1e6 / statistics.median(seconds)),
        "peak_mb": round(max(run.peak_mb for run in runs), 1),
        "psnr_db_to_float32": None if quality is None else round(quality, 2),
    }


def summary(rows: list[dict[str, Any]], commands: list[dict[str, Any]], flops: int) -> dict[str, Any]:
    """Ratios to the authors' way and shares of the limit."""
    rate = {line["name"]: line["megapixels_per_second"] for line in rows}
    authors = next(value for name, value in rate.items() if name.startswith("authors"))
    top = {name.split()[1]: value for name, value in rate.items() if name.startswith("limit")}
    best = max(top.values())
    for line in (*rows, *commands):
        line["ratio_to_authors_way"] = round(line["megapixels_per_second"] / authors, 3)
        line["share_of_limit"] = round(line["megapixels_per_second"] / best, 3)
    return {
        "ratio_to_authors_way": commands[0]["ratio_to_authors_way"],
        "share_of_limit": round(rate["ours, network: default installation"] / best, 3),
        "share_of_limit_float32": round(rate["ours, network: PyTorch float32"] / top["float32"], 3),
        "flops_a_pixel": flops,
        "limit_gflops": {name: round(value * flops / 1e3, 1) for name, value in top.items()},
    }


def curve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Megapixels a second of the network against the side of a tile, up to the whole image, in turns."""
    pixels = image(arguments.image, arguments.size)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    sides = [side for side in TILES if side < arguments.size] + [arguments.size]
    kinds = rapid(arguments.int8)
    rates: dict[str, dict[int, list[float]]] = {name: {side: [] for side in sides} for name, _ in kinds}
    for _ in range(arguments.rounds):
        for name, options in kinds:
            for side in sides:
                purifier = built(options, Settings(tile=side))
                purifier(x[:, :, :64, :64])
                began = time.perf_counter()
                purifier(x)
                rates[name][side].append(x[0, 0].numel() / 1e6 / (time.perf_counter() - began))
                tell(f"{name}: tile {side}: {rates[name][side][-1]:.4f}")
    rows = [{"tile": side, **{name: _short(statistics.median(rates[name][side])) for name in rates}} for side in sides]
    return {"curve": rows, "bands": band_curve(x, arguments.rounds), **about(arguments)}


def band_curve(x: Tensor, rounds: int) -> list[dict[str, float]]:
    """Megapixels a second of PyTorch's networks against the pixels of a band, in turns."""
    kinds = [variant for variant in variants(None) if variant[1]["backend"] == "torch"]
    purifiers = {name: built(options) for name, options in kinds if name != PAPER}
    widest = load_weights(DEFAULT_COLOR).model.architecture.widest
    rates: dict[str, dict[int, list[float]]] = {name: {pixels: [] for pixels in BANDS} for name in purifiers}
    usual = bands.THREAD_BYTES
    for _ in range(rounds):
        for name, purifier in purifiers.items():
            for pixels in BANDS:
                bands.THREAD_BYTES = pixels * widest * next(purifier.parameters()).dtype.itemsize
                began = time.perf_counter()
                purifier(x)
                rates[name][pixels].append(x[0, 0].numel() / 1e6 / (time.perf_counter() - began))
                tell(f"{name}: bands of {pixels} pixels a thread: {rates[name][pixels][-1]:.4f}")
    bands.THREAD_BYTES = usual
    return [{"band": pixels, **{name: _short(statistics.median(rates[name][pixels])) for name in rates}} for pixels in BANDS]


def shapes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Megapixels a second of small images against how many make a batch, and of a crop against the threads, in turns."""
    purifiers = {name: built(options) for name, options in rapid(arguments.int8)}
    default = next(iter(purifiers))
    pixels = torch.from_numpy(image(arguments.image, arguments.size)).permute(2, 0, 1)
    cut = pixels.unfold(1, THUMBNAIL, THUMBNAIL).unfold(2, THUMBNAIL, THUMBNAIL).flatten(1, 2).transpose(0, 1)[:THUMBNAILS].contiguous()
    crop = pixels[None, :, : arguments.crop, : arguments.crop].contiguous()
    by_batch: dict[int, dict[str, list[float]]] = {count: {name: [] for name in purifiers} for count in BATCHES}
    by_threads: dict[int, dict[str, list[float]]] = {count: {default: []} for count in range(1, arguments.threads + 1)}

    def rate(x: Tensor, batch: int, name: str) -> float:
        purifier, pixels = purifiers[name], batch * x[0, 0].numel()
        purifier._plan = lambda x, route: replace(Purifier._plan(purifier, x, route), batch_pixels=pixels)
        began = time.perf_counter()
        purifier(x)
        found = len(x) * x[0, 0].numel() / 1e6 / (time.perf_counter() - began)
        tell(f"{name}, {len(x)} images of {x.shape[2]}x{x.shape[3]} in batches of {batch}, {torch.get_num_threads()} threads: {found:.4f}")
        return found

    for _ in range(arguments.rounds):
        for count, rates in by_batch.items():
            for name in purifiers:
                rates[name].append(rate(cut, count, name))
        for threads, rates in by_threads.items():
            torch.set_num_threads(threads)
            rates[default].append(rate(crop, 1, default))

    def rows(kind: str, measured: dict[int, dict[str, list[float]]]) -> list[dict[str, Any]]:
        return [
            {kind: count, **{name: _short(statistics.median(values)) for name, values in rates.items()}}
            for count, rates in measured.items()
        ]

    return {"batches": rows("batch", by_batch), "by_threads": rows("threads", by_threads), **about(arguments)}


def growth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of the whole command against the image's megapixels; once each, as the large ones take minutes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        for megapixels in arguments.growth:
            side = round((megapixels * 1e6) ** 0.5)
            Image.fromarray(image(arguments.image, side)).save(source, compress_level=1)
            for name, options in variants(arguments.int8):
                if options["precision"] == "float32":
                    continue
                run = watch(purify(source, target, **options))
                tell(f"{side}x{side}, {name}: {run.seconds:.1f} s, {run.peak_mb:.0f} MB")
                above = run.peak_mb - 2 * 3 * side**2 / 1e6
                rows.append(
                    {
                        "name": name,
                        "side": side,
                        "megapixels": round(side**2 / 1e6, 3),
                        "seconds": round(run.seconds, 2),
                        "seconds_a_megapixel": _short(run.seconds / (side**2 / 1e6)),
                        "peak_mb": round(run.peak_mb, 1),
                        "peak_mb_above_decoded": round(above, 1),
                    }
                )
    return {"growth": rows, **about(arguments), "rounds": 1}


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings."""
    found = {package: _version(package) for package in PACKAGES}
    return {
        "image": str(arguments.image or "scikit-image's astronaut"),
        "size": arguments.size,
        "rounds": arguments.rounds,
        "precision_of_default": "bfloat16" if cpu_has_bfloat16() else "float32",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "skipped": skipped(arguments.int8),
        "load_before": arguments.load_before,
        "python": platform.python_version(),
        "versions": {package: number for package, number in found.items() if number},
    }


def skipped(int8: Path | None) -> list[str]:
    """What was not measured for want of something, and what."""
    wanted = {"adversarial-robustness-toolbox": "ART's defences: install the extra [evaluate]", "openvino": "OpenVINO: install the extra"}
    missing = [text for package, text in wanted.items() if not _version(package)]
    return missing + ["int8: give --int8 a file of comdefend quantize"] * (int8 is None)


def cpu_name() -> str:
    """As Linux has it, or what Python knows."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def decibels(one: Path, other: Path) -> float | None:
    """PSNR of two images' files; None where they are the same."""
    a, b = (torch.from_numpy(read_image(path).pixels).permute(2, 0, 1)[None] for path in (one, other))
    value = float(psnr(a, b))
    return value if value < float("inf") else None


def tell(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _without(options: dict[str, str], key: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != key}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    """Measure and print, or print what was measured as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, nargs="?", help="default: a photograph that scikit-image ships, mirrored to --size")
    parser.add_argument("--size", type=int, default=1024, help="side of the image for the whole command")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop for networks and other defences")
    parser.add_argument("--patches", type=int, default=128, help="of the authors' way")
    parser.add_argument("--small", type=int, default=64, help="side of the crop for ART's total variation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--int8", type=Path, help="weights that comdefend quantize made")
    parser.add_argument("--curve", action="store_true", help="megapixels a second against the side of a tile")
    parser.add_argument("--shapes", action="store_true", help="megapixels a second against the images of a batch, and the threads")
    parser.add_argument("--growth", type=float, nargs="+", metavar="MEGAPIXELS", help="seconds and memory of the whole command")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="write the JSON object into a file too")
    arguments = parser.parse_args()
    arguments.load_before = round(os.getloadavg()[0], 2)
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # For the processes that are timed.
    result = (curve if arguments.curve else shapes if arguments.shapes else growth if arguments.growth else measured)(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else speed_report.table(result))


if __name__ == "__main__":
    main()
