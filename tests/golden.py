#!/usr/bin/env python3
"""The pixels that each weight file which ships makes of small images, as hashes in tests/kept/pixels.json.

    PYTHONPATH=. python tests/golden.py            # what is not as it was
    PYTHONPATH=. python tests/golden.py --renew    # write what is now: for weights that are new, or a change of pixels that is meant

They are float32's, on a CPU of x86-64 that multiplies and adds at once (AVX2 or AVX-512): any other rounds its sums otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from comdefend_cli import Purifier
from comdefend_cli.network.registry import load_weights, read_registry

KEPT = Path(__file__).parent / "kept"
PIXELS = KEPT / "pixels.json"
#: Tiny, as CIFAR-10's, and of odd sides that networks of squares do not divide.
SIZES = ((7, 5), (32, 32), (41, 29))


def make_image(height: int, width: int, channels: int) -> np.ndarray:
    """An image of edges and all levels, uint8 (H, W, channels), made of whole numbers alone."""
    y, x, channel = np.mgrid[:height, :width, :channels]
    return ((7 * y + 13 * x + 29 * channel + x * y % 31) % 256).astype(np.uint8)


def hash_pixels(weights: str, *, noise: float | None = None) -> dict[str, str]:
    """SHA-256 of the purified pixels by the image's size; `noise` in 8-bit levels, None for the weights' own."""
    purifier = Purifier(weights=weights, noise=noise, device="cpu", precision="float32")
    channels = load_weights(weights).header.architecture.channels
    images = {f"{height}x{width}": make_image(height, width, channels) for height, width in SIZES}
    return {size: hashlib.sha256(purifier(image).tobytes()).hexdigest() for size, image in images.items()}


def list_shipped() -> dict[str, dict[str, str]]:
    """Of all weights that ship."""
    return {name: hash_pixels(name) for name in sorted(read_registry())}


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--renew", action="store_true", help="write them anew")
    found = list_shipped()
    if made.parse_args().renew:
        PIXELS.write_text(json.dumps(found, indent=1) + "\n")
    kept = json.loads(PIXELS.read_text())
    sys.exit("".join(f"{name}: other pixels\n" for name in found.keys() | kept.keys() if found.get(name) != kept.get(name)) or 0)
