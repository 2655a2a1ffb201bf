#!/usr/bin/env python3
"""Whether the same image gives the same bytes: whatever computes it, with whatever beside it.

    python reliability/sameness.py --out sameness.json

Each weight file that ships purifies images of many sizes, alone, whole, with one thread; then with other numbers of threads, other tiles,
in batches, again, in processes that use older instructions, through a folder by the engine of this machine and by Ray, on a GPU where there
is one, and in narrower precisions and other backends, which do not promise it. What differs is counted, not only found.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from findings import write_findings

from comdefend_cli import Purifier, Settings
from comdefend_cli.network.registry import load_weights, read_registry

#: Rows and columns: the least, odd ones, CIFAR-10's, and more than a tile or a band.
SIZES = ((1, 1), (5, 3), (15, 16), (32, 32), (61, 53), (130, 174))
#: What makes a CPU work as an older one; without fused multiplication and addition, sums are rounded otherwise.
INSTRUCTIONS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
Images = list[np.ndarray]


@dataclass
class Difference:
    """Over weights: how many values of how many differ, how many by more than one level, and the most; which weights have other bytes."""

    values: int = 0
    differ: int = 0
    more: int = 0
    most: int = 0
    weights: list[str] = field(default_factory=list)

    def add(self, weights: str, expected: Images, found: Images) -> None:
        """Count the values of images."""
        for before, after in zip(expected, found, strict=True):
            apart = abs(before.astype(int) - after.astype(int))
            self.values += apart.size
            self.differ += int((apart > 0).sum())
            self.more += int((apart > 1).sum())
            self.most = max(self.most, int(apart.max()))
            if apart.any() and weights not in self.weights:
                self.weights.append(weights)

    def make_row(self, what: str) -> dict[str, Any]:
        """The row of a table; shares in percent."""
        differ, more = (f"{100 * count / self.values:.3g}" for count in (self.differ, self.more))
        shares = {"differ, %": differ, "by more than one level, %": more, "at most, levels": self.most}
        return {"changed": what, "values": self.values, **shares, "weights with other bytes": len(self.weights)}


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all, and write what was found."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("sameness.json"))
    made.add_argument("--pixels", type=Path, help=argparse.SUPPRESS)  # A process of older instructions writes here, and ends.
    made.add_argument("--no-ray", action="store_true", help="leave the folder through Ray out")
    arguments = made.parse_args(argv)
    torch.set_num_threads(1)
    names = sorted(read_registry())
    if arguments.pixels:
        np.savez(arguments.pixels, *(image for name in names for image in purify_all(name)))
        return
    found: dict[str, Difference] = {}
    engines: list[dict[str, Any]] = []

    def compare(what: str, weights: str, images: Images) -> None:
        found.setdefault(what, Difference()).add(weights, expected[weights], images)
        print(weights, found[what].make_row(what), file=sys.stderr, flush=True)
        write()

    def write() -> None:
        write_findings(arguments.out, {"compared": [each.make_row(what) for what, each in found.items()], "engines": engines})

    expected = {name: purify_all(name) for name in names}
    for name in names:
        for what, images in vary(name):
            compare(what, name, images)
    with tempfile.TemporaryDirectory() as folder:
        for what, variables in INSTRUCTIONS.items():
            older = run_older(Path(folder) / f"{what}.npz", variables)
            for name in names:
                compare(f"instructions of {what}", name, [older.pop(0) for _ in SIZES])
        engines += compare_engines(Path(folder), ray=not arguments.no_ray and find_spec("ray") is not None)
        write()


def make_images(weights: str) -> Images:
    """Smooth colours with noise, uint8 (H, W, C), of all sizes."""
    channels = load_weights(weights).header.architecture.channels
    draw = np.random.default_rng(0)
    images = []
    for height, width in SIZES:
        y, x, c = np.mgrid[:height, :width, :channels]
        smooth = 128 + 90 * np.sin(y / (5 + c) + x / (7 + 2 * c))
        images.append(np.clip(smooth + draw.integers(-25, 26, smooth.shape), 0, 255).astype(np.uint8))
    return images


def purify_all(weights: str, how: Callable[[Purifier, np.ndarray], np.ndarray] = Purifier.__call__, **chosen: Any) -> Images:
    """All images, one by one; float32 by PyTorch on the CPU unless told otherwise."""
    purifier = Purifier.from_pretrained(weights, **{"device": "cpu", "precision": "float32", "backend": "torch", **chosen})
    return [how(purifier, image) for image in make_images(weights)]


def vary(weights: str) -> Iterator[tuple[str, Images]]:
    """What may change, and the pixels then."""
    yield "nothing", purify_all(weights)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        yield f"{count} threads", purify_all(weights)
        torch.set_num_threads(1)
    for tile in (32, 50, 100):
        yield f"tiles of {tile}", purify_all(weights, settings=Settings(tile=tile))
    for count in (2, 7):
        yield f"batch of {count}", purify_all(weights, partial(purify_among, count=count))
    if torch.cuda.is_available():
        yield "CUDA, float32", purify_all(weights, device="cuda")
    yield "bfloat16", purify_all(weights, precision="bfloat16")
    if find_spec("openvino"):
        for precision in ("float32", "bfloat16"):
            yield f"OpenVINO, {precision}", purify_all(weights, backend="openvino", precision=precision)


def purify_among(purifier: Purifier, image: np.ndarray, count: int) -> np.ndarray:
    """An image as the last of a batch of so many."""
    others = [np.roll(image, shift, 0)[:, ::-1] for shift in range(1, count)]
    cleaned: np.ndarray = purifier(np.stack([*others, image]))[-1]
    return cleaned


def run_older(path: Path, variables: dict[str, str]) -> Images:
    """The images of all weights from a process that uses older instructions."""
    command = [sys.executable, __file__, "--pixels", str(path)]
    subprocess.run(command, env={**os.environ, **variables}, check=True)
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def compare_engines(folder: Path, *, ray: bool) -> list[dict[str, Any]]:
    """A folder through the engine of this machine, twice and in each backend, and through Ray; a row each."""
    from runs import make_images as make_files

    make_files(folder / "in", 60)
    rows = []
    for backend in ("torch", *(["openvino"] if find_spec("openvino") else [])):
        for precision in ("float32", "bfloat16"):
            how = ["--device", "cpu", "--backend", backend, "--precision", precision]
            outs = {"again": [], "one by one": [], **({"Ray, two workers": ["--engine", "ray", "--workers", "2"]} if ray else {})}
            first = folder / f"{backend}-{precision}"
            purify_folder(folder / "in", first, how)
            for what, more in outs.items():
                out = folder / f"{backend}-{precision}-{what}"
                if what == "one by one":
                    for path in sorted((folder / "in").iterdir()):
                        link = folder / f"one-{backend}-{precision}" / path.stem / path.name
                        link.parent.mkdir(parents=True)
                        link.symlink_to(path)
                    purify_apart(folder / f"one-{backend}-{precision}", out, backend, precision)
                else:
                    purify_folder(folder / "in", out, [*how, *more])
                names = [path.name for path in first.iterdir() if path.name[0] != "."]
                other = [name for name in names if (first / name).read_bytes() != (out / name).read_bytes()]
                rows.append({"engine": what, "backend": backend, "precision": precision, "files": len(names), "other bytes": len(other)})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def purify_folder(source: Path, out: Path, more: list[str]) -> None:
    """By the command."""
    command = [sys.executable, "-m", "comdefend_cli", "purify-dir", str(source), "--out", str(out), "--quiet", *more]
    subprocess.run(command, check=True)


def purify_apart(source: Path, out: Path, backend: str, precision: str) -> None:
    """Each image in a folder of its own, so that none is in a batch with another; the outputs together in one folder."""
    from comdefend_cli.batch.local import open_local
    from comdefend_cli.batch.networks import Networks
    from comdefend_cli.batch.request import Request
    from comdefend_cli.batch.storage.folder import Folder

    networks = Networks(Request(None, "cpu", precision, backend))
    for folder in sorted(source.iterdir()):
        with open_local(Folder(folder), Folder(out), networks) as engine:
            if any(result.status != "done" for result in engine.results()):
                raise RuntimeError(f"{folder}: not purified")


if __name__ == "__main__":
    main()
