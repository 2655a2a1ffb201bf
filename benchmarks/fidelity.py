#!/usr/bin/env python3
"""How near purified images stay to their originals, and what precision changes in them.

    python benchmarks/fidelity.py --data-dir DATA [--photographs DIR] [--images N] [--input-noise S] [--weights NAME|PATH ...]

For each weight file: mean PSNR and SSIM over test images of the data it was trained on, and over the images of a
folder (grey where the weights are grey). For each other precision: share of code bits flipped and PSNR to float32.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comdefend_cli.data.datasets import DATASETS, load_dataset
from comdefend_cli.imaging.formats import list_suffixes
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.settings import Settings
from comdefend_cli.network.luma import take_luma
from comdefend_cli.network.metrics import TOP_PSNR, mean_psnr, psnr, ssim
from comdefend_cli.network.registry import read_registry, read_weights_header
from comdefend_cli.runtime.device import cpu_has_bfloat16


def measure(purifier: Purifier, batches: list[Tensor]) -> dict[str, Any]:
    """Mean over images of PSNR in dB and SSIM, with their number."""
    decibels: list[float] = []
    similarity: list[float] = []
    for batch in batches:
        result = purifier.purify(batch)
        decibels += psnr(batch, result).clamp(max=TOP_PSNR).tolist()
        similarity += [ssim(a[None], b[None]) for a, b in zip(batch, result, strict=True)]
    count = len(decibels)
    return {"n": count, "psnr_db": round(sum(decibels) / count, 3), "ssim": round(sum(similarity) / count, 4)}


def precision(name: str, other: str, batch: Tensor, settings: Settings) -> dict[str, Any]:
    """What another precision changes: share of code bits, PSNR of the result to float32's, and PSNR of both to the originals."""
    exact, rough = (Purifier.from_pretrained(name, device="cpu", precision=value, settings=settings) for value in ("float32", other))
    flipped = (exact.code(batch) != rough.code(batch)).float().mean()
    first, second = exact.purify(batch), rough.purify(batch)
    return {
        "n": len(batch),
        "bits_flipped": round(float(flipped), 6),
        "psnr_to_float32_db": round(mean_psnr(first, second), 2),
        "psnr_db": round(mean_psnr(batch, second), 3),
        "psnr_db_float32": round(mean_psnr(batch, first), 3),
    }


def folder(path: Path, channels: int) -> list[Tensor]:
    """The images of a folder, as they are or as grey, a batch each."""
    known = list_suffixes(writable=False)
    batches = []
    for file in sorted(item for item in path.iterdir() if item.suffix.lower() in known):
        batch = torch.from_numpy(read_image(file).pixels).permute(2, 0, 1)[None]
        if channels == 1 and batch.shape[1] == 3:
            batch = take_luma(batch.float()).round().to(torch.uint8)
        batches.append(batch)
    return batches


def main() -> None:
    """Measure, print a line a result, and all as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="official files of CIFAR-10 and Fashion-MNIST")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, such as Kodak's")
    parser.add_argument("--images", type=int, default=1000, help="test images a data set")
    parser.add_argument("--input-noise", type=float, help="in 8-bit levels; default: what the weights are made for")
    parser.add_argument("--precision-images", type=int, default=32, help="of these for each precision")
    parser.add_argument("--weights", nargs="*", default=sorted(read_registry()), help="names or files; default all that ship")
    arguments = parser.parse_args()
    settings = Settings(input_noise=arguments.input_noise)
    results: dict[str, Any] = {}
    for name in arguments.weights:
        header, _, _ = read_weights_header(name)
        channels = header.architecture.channels
        purifier = Purifier.from_pretrained(name, device="cpu", precision="float32", settings=settings)
        data = header.training.get("data")
        if data not in DATASETS:  # Imported, or trained on a folder of images.
            data = "cifar10" if channels == 3 else "fashion-mnist"
        test = load_dataset(data, arguments.data_dir, download=False).test.pixels[: arguments.images]
        results[name] = {data: measure(purifier, list(torch.split(test, 256)))}
        if arguments.photographs:
            results[name][arguments.photographs.name] = measure(purifier, folder(arguments.photographs, channels))
        results[name]["bfloat16"] = precision(name, "bfloat16", test[: arguments.precision_images], settings)
        print(name, json.dumps(results[name]), flush=True)
    native = {"native_bfloat16": cpu_has_bfloat16()}
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(), **native}
    print(json.dumps({"results": results, **about}))


if __name__ == "__main__":
    main()
