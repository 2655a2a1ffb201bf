#!/usr/bin/env python3
"""How near images purified by other backends and precisions lie to PyTorch's in float32, with the same weights.

    python benchmarks/backends.py --int8 FILE [--data-dir DATA] [--photographs DIR] [--images 64] [--crop 128] [--out FILE]

FILE is of `comdefend quantize`, and so holds the float32 networks too. The images are the first --images test images of CIFAR-10, and the
middle of each photograph of a folder.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch
from fidelity import folder
from json_out import emit
from torch import Tensor

from comdefend_cli import Purifier
from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.network.metrics import TOP_PSNR, psnr

KINDS = (("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"))


def middle(image: Tensor, side: int) -> Tensor:
    """The middle of (1, C, H, W), of at most so many pixels a side."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[2:])
    return image[:, :, top : top + side, left : left + side]


def rows(name: str, batches: list[Tensor], weights: str) -> list[dict[str, Any]]:
    """A row a backend and precision, all on the same images, uint8 (N, 3, H, W)."""
    exact = Purifier.from_pretrained(weights, device="cpu", precision="float32")
    wanted = [exact(batch) for batch in batches]
    held = _mean([psnr(*pair) for pair in zip(batches, wanted, strict=True)])
    made = []
    for backend, precision in KINDS:
        purifier = Purifier.from_pretrained(weights, device="cpu", precision=precision, backend=backend)
        found = [purifier(batch) for batch in batches]
        near = [psnr(*pair).clamp(max=TOP_PSNR) for pair in zip(wanted, found, strict=True)]
        made.append(
            {
                "images": name,
                "n": sum(map(len, batches)),
                "computed_by": f"{backend} {precision}",
                "dB_to_float32": _mean(near),
                "lowest": round(float(torch.cat(near).min()), 2),
                "dB_to_the_image": _mean([psnr(*pair) for pair in zip(batches, found, strict=True)]),
                "of_float32": held,
            }
        )
    return made


def _mean(values: list[Tensor]) -> float:
    return round(float(torch.cat(values).mean()), 2)


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--int8", type=Path, required=True, help="weights of comdefend quantize")
    parser.add_argument("--data-dir", type=Path, help="official files of CIFAR-10")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, such as Kodak's")
    parser.add_argument("--images", type=int, default=64, help="test images of CIFAR-10")
    parser.add_argument("--crop", type=int, default=128, help="pixels a side of each photograph")
    parser.add_argument("--out", type=Path, help="write the JSON object into a file too")
    arguments = parser.parse_args()
    sets: dict[str, list[Tensor]] = {}
    if arguments.data_dir:
        test = load_dataset("cifar10", arguments.data_dir, download=False).test.pixels[: arguments.images]
        sets["CIFAR-10 test images"] = list(torch.split(test, 64))
    if arguments.photographs:
        crops = [middle(image, arguments.crop) for image in folder(arguments.photographs, 3)]
        sets[f"{arguments.photographs.name}, {arguments.crop}x{arguments.crop}"] = [crop for crop in crops if crop.shape[1] == 3]
    result = {
        "rows": [row for name, batches in sets.items() for row in rows(name, batches, str(arguments.int8))],
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    emit(result, arguments.out)


if __name__ == "__main__":
    main()
