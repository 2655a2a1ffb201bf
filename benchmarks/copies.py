#!/usr/bin/env python3
"""What copying a photograph to and from a GPU's batches costs the CPU, beside threads that decode and encode.

    python benchmarks/copies.py [--megapixels 12] [--rounds 15] [--out FILE]

Needs no GPU: it times what `purify-dir` does on the CPU for one, which is to join the windows of an image and to put their cores into
place again. In turns with one thread for each operation and with as many as PyTorch takes, while nothing else is done and while two
threads a core encode JPEGs, as the engine's do. Medians in milliseconds an image.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from json_out import emit
from PIL import Image
from torch import Tensor

from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.writing import encode_image
from comdefend_cli.inference.planning import BATCH_PIXELS, DEFAULT_TILE
from comdefend_cli.inference.stitching import fill_cores, join_windows
from comdefend_cli.inference.tiling import batch_windows, cut_tiles
from comdefend_cli.runtime.machine import count_cores

#: Of the networks that ship.
HALO = 18


def copies(x: Tensor) -> Tensor:
    """An image's windows in batches, and back, without what a GPU does in between: the image again."""
    out = torch.empty_like(x)
    for batch in batch_windows(cut_tiles(x.shape[2], x.shape[3], DEFAULT_TILE["cuda"], HALO), len(x), BATCH_PIXELS["cuda"]):
        fill_cores(out, batch, join_windows(x, batch))
    return out


@contextmanager
def encoding(threads: int) -> Iterator[None]:
    """So many threads encode a photograph as JPEG, over and over, until this is left."""
    ended = threading.Event()
    image = from_pillow(Image.effect_noise((1000, 1000), 60).convert("RGB"))

    def encode() -> None:
        while not ended.is_set():
            encode_image(image, "JPEG")

    running = [threading.Thread(target=encode) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in running:
            thread.join()


def milliseconds(x: Tensor, threads: int) -> float:
    """Of one image's copies, each operation by so many threads."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    copies(x)
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the result into a file too")
    arguments = parser.parse_args()
    height = round((arguments.megapixels * 1e6 * 3 / 4) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, height * 4 // 3, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    many = torch.get_num_threads()
    rows = []
    for beside in (0, 2 * count_cores()):
        with encoding(beside):
            measured = [(milliseconds(x, many), milliseconds(x, 1)) for _ in range(arguments.rounds + 1)][1:]
        all_threads, one = map(list, zip(*measured, strict=True))
        row = {"encoding threads": beside, f"by {many} threads": statistics.median(all_threads), "by one": statistics.median(one)}
        rows.append({name: round(value, 1) for name, value in row.items()})
    emit(
        {"rows": rows, "rounds": arguments.rounds, "shape": list(x.shape), "cores": count_cores(), "torch": torch.__version__},
        arguments.out,
    )


if __name__ == "__main__":
    main()
