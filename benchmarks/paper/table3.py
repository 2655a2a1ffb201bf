#!/usr/bin/env python3
"""The paper's table 3: PSNR against code bits a pixel, the same training budget for each.

    python benchmarks/paper/table3.py --data-dir DATA --out FOLDER [--steps N] [--batch-size N] [--images N] [--precision NAME]

Trains ComDefend on CIFAR-10 with 8, 10, 12, 14 and 16 bits and measures the mean PSNR of the binarized reconstruction on test
images. Bits that FOLDER holds already are not trained again. Writes FOLDER/table3.md and FOLDER/table3.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from published import TABLE3
from training import trained

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.runtime.device import describe_device, resolve_device
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.loop import resolve_training_precision


def markdown(rows: dict[int, dict[str, Any]], about: str) -> str:
    """The table beside the paper's."""
    lines = ["| code bits | paper dB | measured dB | SSIM | n |", "|---|---|---|---|---|"]
    for bits, row in rows.items():
        lines.append(f"| {bits} | {TABLE3[bits]:.2f} | {row['psnr_db']:.2f} | {row['ssim']:.4f} | {row['test_images']} |")
    return "\n".join([*lines, "", about, ""])


def main() -> None:
    """Train what is absent, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="of training: auto, float32 or bfloat16; PSNR is measured in float32")
    arguments = parser.parse_args()
    arguments.precision = resolve_training_precision(arguments.precision, resolve_device(arguments.device))
    (arguments.out / "table3").mkdir(parents=True, exist_ok=True)
    dataset = load_dataset("cifar10", arguments.data_dir, download=False)
    rows = {}
    for bits in TABLE3:
        config = TrainConfig(dataset.name, arguments.steps, arguments.batch_size, bits=bits, precision=arguments.precision)
        rows[bits] = trained(config, dataset, arguments.device, arguments.out / "table3", arguments.images).header.training
    device = describe_device(resolve_device(arguments.device))
    budget = f"{arguments.steps} steps of {arguments.batch_size} images each in {arguments.precision}, one seed"
    about = f"{budget}; {device} ({os.cpu_count()} cores, {platform.machine()}), torch {torch.__version__}."
    table = markdown(rows, about)
    print(table)
    write_atomically(arguments.out / "table3.md", table.encode(), overwrite=True)
    write_atomically(arguments.out / "table3.json", json.dumps({"rows": rows, "about": about}, indent=1).encode(), overwrite=True)


if __name__ == "__main__":
    main()
