#!/usr/bin/env python3
"""What a million and a billion photographs cost: hours, bytes, and which of them holds the others up.

    python benchmarks/capacity.py --codec codec.json [--speed speed.json] [--rate h100=150] [--out capacity.json]
    python benchmarks/capacity.py --measure-codec codec.json [--seconds 10]

Rates are megapixels a second of one device inside the network: measured, and given by name, or taken from the JSON of
benchmarks/speed.py, of the networks that --kinds names. A device whose name begins with cpu shares
its cores with the codec; any other is a GPU.
--measure-codec measures, on one core, how fast 12-megapixel photographs are decoded from JPEG and encoded as PNG and JPEG, and their bytes.
Everything else is computed from --megapixels a photograph, --cores beside a device and --gigabits a second of network to the store.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from json_out import emit
from PIL import Image

SCALES = {"a million": 10**6, "a billion": 10**9}


def photograph(megapixels: float) -> Image.Image:
    """A photograph of that size, made of one that scikit-image ships: scaled up, with a little noise, as a sensor's."""
    image = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    large = np.array(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).normal(0, 2, large.shape[:2])[..., None]
    return Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8))


def journal_bytes() -> float:
    """Bytes that a finished image takes in the state file of purify-dir, with names as of a camera's in a subfolder."""
    from comdefend_cli.batch.journal import STATE, open_journal
    from comdefend_cli.batch.storage.folder import Folder

    with tempfile.TemporaryDirectory() as name:
        out, count = Path(name) / "out", 100
        with open_journal(Folder(out)) as state:
            stamp = out.stat()
            for index in range(count):
                state.finish(f"2026-07-14/IMG_{index:06}.png", f"2026-07-14/IMG_{index:06}.jpg", stamp, stamp, "0" * 16)
        return (out / STATE).stat().st_size / count


def plan_bytes() -> float:
    """Bytes of memory that the plan and the journal hold of an image that is to do, and is then done."""
    from comdefend_cli.batch.journal import open_journal
    from comdefend_cli.batch.plan import Job
    from comdefend_cli.batch.storage.folder import Folder

    count = 20_000
    with tempfile.TemporaryDirectory() as name, open_journal(Folder(Path(name) / "out")) as state:
        stamp = Path(name).stat()
        tracemalloc.start()
        names = [(f"2026-07-14/IMG_{index:06}.jpg", f"2026-07-14/IMG_{index:06}.png") for index in range(count)]
        jobs = [Job(*pair, 4_000_000, False) for pair in names]
        for job in jobs:
            state.finish(job.output, job.source, stamp, stamp, "0" * 16)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return round(held / count, 1)


def rate(work: Callable[[], object], megapixels: float, seconds: float) -> float:
    """Megapixels a second of something repeated for so long at least."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        work()
        count += 1
    return round(megapixels * count / (time.perf_counter() - began), 2)


def measure_codec(megapixels: float, seconds: float) -> dict[str, Any]:
    """One core's rates and the bytes a pixel, by the settings that comdefend writes with."""
    from comdefend_cli.imaging.conversion import from_pillow
    from comdefend_cli.imaging.writing import encode_image

    image = photograph(megapixels)
    exact = image.width * image.height / 1e6
    held = from_pillow(image)
    jpeg, png = encode_image(held, "JPEG"), encode_image(held, "PNG")
    return {
        "decode_jpeg_megapixels_per_second": rate(lambda: np.array(Image.open(io.BytesIO(jpeg))), exact, seconds),
        "encode_png_megapixels_per_second": rate(lambda: encode_image(held, "PNG"), exact, seconds),
        "encode_jpeg_megapixels_per_second": rate(lambda: encode_image(held, "JPEG"), exact, seconds),
        "jpeg_bytes_a_pixel": round(len(jpeg) / exact / 1e6, 4),
        "png_bytes_a_pixel": round(len(png) / exact / 1e6, 4),
        "megapixels": round(exact, 3),
        "machine": f"{platform.machine()}, one core",
    }


def cost(name: str, network: float, codec: dict[str, Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a device, one a scale and output format; rates in megapixels a second of one device with its cores and its network line."""
    rows = []
    for output in ("png", "jpeg"):
        decode, encode = codec["decode_jpeg_megapixels_per_second"], codec[f"encode_{output}_megapixels_per_second"]
        moved = codec["jpeg_bytes_a_pixel"] + codec[f"{output}_bytes_a_pixel"]
        # On a CPU the codec's cores are the network's own, so their times add up; beside a GPU they work at once.
        shared = _is_cpu(name)
        coding = (arguments.cores if shared else arguments.gpu_cores) / (1 / decode + 1 / encode)
        limits = {"codec": coding, "network line": arguments.gigabits * 125 / moved}
        limits["purification"] = 1 / (1 / network + 1 / coding) if shared else network
        bottleneck = min(limits, key=lambda kind: limits[kind])
        for scale, count in SCALES.items():
            pixels = count * arguments.megapixels
            rows.append(
                {
                    "device": name,
                    "photographs": scale,
                    "output": output,
                    "device_hours": round(pixels / limits["purification"] / 3600, 1),
                    "device_hours_at_bottleneck": round(pixels / limits[bottleneck] / 3600, 1),
                    "bottleneck": bottleneck,
                    "terabytes_read": round(pixels * codec["jpeg_bytes_a_pixel"] / 1e6, 1),
                    "terabytes_written": round(pixels * codec[f"{output}_bytes_a_pixel"] / 1e6, 1),
                    "devices_for_a_day": round(pixels / limits[bottleneck] / 86400, 1),
                    "first_process_gigabytes": round(count * arguments.plan_bytes / 1e9, 2),
                    "journal_gigabytes": round(count * arguments.journal_bytes / 1e9, 2),
                }
            )
    return rows


def _is_cpu(name: str) -> bool:
    return name.startswith("cpu")


def rates(arguments: argparse.Namespace) -> dict[str, float]:
    """By device, as given, and each of our networks as benchmarks/speed.py and benchmarks/gpu.py measured them."""
    found = {}
    for text in arguments.rate:
        name, _, value = text.partition("=")
        found[name] = float(value)
    methods = json.loads(arguments.speed.read_text())["methods"] if arguments.speed else []
    for method in methods:
        title, _, kind = method["name"].partition(": ")
        if title == "ours, network" and kind in arguments.kinds:
            found[f"cpu, {kind}"] = method["megapixels_per_second"]
    measured = json.loads(arguments.gpu.read_text()) if arguments.gpu else {"rows": []}
    for row in measured["rows"]:
        what, _, where = row["name"].removeprefix("ours: ").partition(", ")
        if where == "host to host":
            found[f"{measured['gpu']}, {what}"] = row["megapixels_per_second"]
    return found


def main() -> None:
    """Measure the codec, or compute the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=MEGAPIXELS_A_SECOND")
    parser.add_argument("--speed", type=Path, help="JSON of benchmarks/speed.py, for the rates of a CPU")
    parser.add_argument("--gpu", type=Path, help="JSON of benchmarks/gpu.py, for the rates of a GPU from host to host")
    parser.add_argument("--kinds", nargs="+", default=["default installation", "OpenVINO int8"], help="whose rates to take from it")
    parser.add_argument("--codec", type=Path, help="JSON of --measure-codec")
    parser.add_argument("--measure-codec", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--cores", type=int, default=2, help="of a CPU, which decode and encode too")
    parser.add_argument("--gpu-cores", type=int, default=16, help="that decode and encode beside a GPU")
    parser.add_argument("--gigabits", type=float, default=10, help="a second, of each device's line to the store")
    parser.add_argument("--out", type=Path, help="write the JSON object into a file too")
    arguments = parser.parse_args()
    if arguments.measure_codec:
        emit(measure_codec(arguments.megapixels, arguments.seconds), arguments.measure_codec)
        return
    if not arguments.codec:
        parser.error("--codec FILE is needed; make it with --measure-codec FILE")
    arguments.journal_bytes, arguments.plan_bytes = journal_bytes(), plan_bytes()
    codec, given = json.loads(arguments.codec.read_text()), rates(arguments)
    rows = [row for name, value in given.items() for row in cost(name, value, codec, arguments)]
    missing = {"cpu", "gpu"} - {"cpu" if _is_cpu(name) else "gpu" for name in given}
    assumed = {key: getattr(arguments, key) for key in ("megapixels", "cores", "gpu_cores", "gigabits", "journal_bytes", "plan_bytes")}
    result = {
        "rows": rows,
        "megapixels_per_second": given,
        "codec": codec,
        "assumed": assumed,
        "not_measured": sorted(missing),
    }
    emit(result, arguments.out)


if __name__ == "__main__":
    main()
