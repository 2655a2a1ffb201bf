#!/usr/bin/env python3
"""How close `comdefend purify-dir` comes to the network's own rate on the same pixels.

    python benchmarks/folder.py [--thumbnails 10000] [--photographs 200] [--large 0] [--precision NAME] [--device NAME] [--backend NAME]
                                [--weights NAME] [--json]

Makes that many 32x32 PNGs, photographs of mixed sizes as JPEG, and of 12 megapixels as JPEG, out of images that scikit-image ships.
In one process: the networks purify all decoded images, in the batches and tiles that purify-dir would make of them; then the engine of
purify-dir goes from file to file; then the networks again, whose two times are averaged; last the engine with nothing in the networks'
place. The ratio is of images a second, the engine's to the networks'; the other one to the slower of networks and files alone.
Start-up and planning count for none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image

from comdefend_cli.batch.local import open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.inference.planning import BATCH_PIXELS
from comdefend_cli.runtime.machine import count_cores

#: Longest sides of the photographs in turn: from what a web page shows to a small camera's.
SIDES = (200, 320, 448, 640, 800)
SOURCES = ("astronaut.png", "coffee.png", "chelsea.png", "camera.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg")


def sources() -> list[Image.Image]:
    """The images that scikit-image ships in this version."""
    base = Path(skimage.__file__).parent / "data"
    return [Image.open(base / name).convert("RGB") for name in SOURCES if (base / name).exists()]


def make_thumbnails(target: Path, count: int) -> None:
    """Different 32x32 pieces of photographs, as PNG."""
    generator = np.random.default_rng(0)
    images = sources()
    for index in range(count):
        image = images[index % len(images)]
        x, y = (int(generator.integers(0, side - 32)) for side in image.size)
        image.crop((x, y, x + 32, y + 32)).save(target / f"{index:06}.png")


def make_photographs(target: Path, count: int) -> None:
    """Photographs in several sizes, as JPEG."""
    for index, (image, side) in zip(range(count), itertools.cycle(itertools.product(sources(), SIDES)), strict=False):
        scale = side / max(image.size)
        image.resize((round(image.width * scale), round(image.height * scale))).save(target / f"{index:05}.jpg", quality=92)


def make_large(target: Path, count: int) -> None:
    """Photographs of 12 megapixels with a small one's detail, mirrored over and over, as JPEG."""
    for index, image in zip(range(count), itertools.cycle(sources()), strict=False):
        pixels = np.asarray(image.rotate(90 * (index % 4), expand=True))
        missing = [(0, max(0, side - own)) for side, own in zip((3000, 4000), pixels.shape, strict=False)]
        whole = np.pad(pixels, (*missing, (0, 0)), "symmetric")[:3000, :4000]
        Image.fromarray(whole).save(target / f"{index:05}.jpg", quality=92)


def batches(source: Path, networks: Networks) -> list[torch.Tensor]:
    """All images of a folder, decoded, in batches of one size, uint8 (N, 3, H, W)."""
    shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in sorted(source.iterdir()):
        pixels = np.array(Image.open(path).convert("RGB"))
        shapes.setdefault(pixels.shape, []).append(pixels)
    made = []
    for (height, width, _), arrays in shapes.items():
        limit = max(1, BATCH_PIXELS[networks.device.type] // (height * width))
        made += [torch.from_numpy(np.stack(arrays[i : i + limit])).permute(0, 3, 1, 2) for i in range(0, len(arrays), limit)]
    return made


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def engine(source: Path, out: Path, networks: Networks) -> float:
    """Seconds of the engine from its first file to its last."""
    with open_local(Folder(source), Folder(out), networks, Options()) as work:

        def run() -> None:
            failed = [result.reason for result in work.results() if result.status != "done"]
            if failed:
                raise SystemExit(failed[0])

        return timed(run)


def measure(make: Callable[[Path, int], None], count: int, networks: Networks, base: Path) -> dict[str, Any]:
    """Rates of both on so many images."""
    source = base / make.__name__
    source.mkdir()
    make(source, count)
    tensors = batches(source, networks)
    pixels = sum(batch.shape[0] * batch.shape[2] * batch.shape[3] for batch in tensors)

    def network() -> None:
        for batch in tensors:
            networks.purifier.purify(batch)

    networks.purifier.purify(tensors[0])  # Memory and kernels are there from now on.
    first = timed(network)
    whole = engine(source, base / f"{make.__name__}-out", networks)
    alone = (first + timed(network)) / 2
    networks.purifier.purify = lambda x, progress: x  # type: ignore[method-assign]
    files = engine(source, base / f"{make.__name__}-files", networks)
    del networks.purifier.purify
    return {
        "images": count,
        "megapixels": round(pixels / 1e6, 3),
        "network_seconds": round(alone, 3),
        "engine_seconds": round(whole, 3),
        "files_alone_seconds": round(files, 3),
        "network_megapixels_per_second": round(pixels / 1e6 / alone, 4),
        "engine_megapixels_per_second": round(pixels / 1e6 / whole, 4),
        "engine_images_per_second": round(count / whole, 2),
        "ratio": round(alone / whole, 4),
        "ratio_to_the_slower": round(max(alone, files) / whole, 4),
        "milliseconds_above_network_an_image": round((whole - alone) / count * 1e3, 4),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", type=int, default=10_000)
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument(
        "--large", type=int, default=0, help="photographs of 12 megapixels: 40 seconds each on two cores, 0.1 on a fast GPU"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--weights")
    parser.add_argument("--folder", type=Path, help="where to put the images, on the disk to be measured; default: the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    networks = Networks(Request(arguments.weights, arguments.device, arguments.precision, arguments.backend))
    kinds = [(make_thumbnails, arguments.thumbnails), (make_photographs, arguments.photographs), (make_large, arguments.large)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        results = {make.__name__.removeprefix("make_"): measure(make, count, networks, Path(name)) for make, count in kinds if count}
    result = {
        "runs": results,
        "device": networks.where,
        "precision": networks.identity.how,
        "threads": torch.get_num_threads(),
        "cores": count_cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for kind, run in results.items():
        rates = f"{run['engine_megapixels_per_second']} of the network's {run['network_megapixels_per_second']} megapixels/s"
        print(f"{run['images']} {kind}: {rates}, ratio {run['ratio']}; {run['milliseconds_above_network_an_image']} ms an image above it")
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}))


if __name__ == "__main__":
    main()
