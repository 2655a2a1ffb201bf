#!/usr/bin/env python3
"""The paper's table 4: a classifier's accuracy on purified clean images, over the penalty lambda and the noise phi in training.

    python benchmarks/paper/table4.py --data-dir DATA --out FOLDER --classifier FILE [--quick] [--steps N] [--limit N] [--split test]

Trains ComDefend on CIFAR-10 for a small budget for each of the 40 pairs (6 with --quick). Weights that FOLDER/table4 holds are not
trained again, so the same command goes on where it was stopped. Writes FOLDER/table4.md and FOLDER/table4.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import hardware, make_folder, write
from options import parser, run
from published import PHIS, TABLE4, TABLE4_CAPTION, TABLE4_DOUBTS, TABLE4_IMAGES
from side_by_side import beside, grid, interval
from torch import Tensor
from training import trained

from comdefend_cli.classifiers.loading import Classifier, load_classifier
from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.runtime.device import resolve_device
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.loop import resolve_training_precision

QUICK_LAMBDAS, QUICK_PHIS = (0.01, 0.0001), (1.0, 20.0, 50.0)


@torch.no_grad()
def count_right(classifier: Classifier, pixels: Tensor, labels: Tensor, device: torch.device) -> int:
    """How many images, uint8 (N, C, H, W), are classified right."""
    right = 0
    for part, wanted in zip(torch.split(pixels, 250), torch.split(labels, 250), strict=True):
        right += int((classifier.model(part.to(device).float() / 255).argmax(1).cpu() == wanted).sum())
    return right


def sample(dataset: Dataset, split: str, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random images of a split with their labels."""
    part = dataset.train if split == "train" else dataset.test
    assert isinstance(part, ImageArray)  # CIFAR-10 is.
    chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:limit]
    return part.pixels[chosen], part.labels[chosen]


def measure(penalty: float, phi: float, dataset: Dataset, classifier: Classifier, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell: accuracy on purified images and PSNR, or how the training ended."""
    device = resolve_device(arguments.device)
    precision = resolve_training_precision(arguments.precision, device)
    config = TrainConfig(
        dataset.name, arguments.steps, arguments.batch_size, arguments.seed, penalty=penalty, noise_std=phi, precision=precision
    )
    try:
        found = trained(config, dataset, arguments.device, arguments.out / "table4")
    except TrainingError as error:
        return {"collapsed": str(error)}
    purifier = Purifier.from_weights([found], device=device, precision=arguments.precision)
    pixels, labels = sample(dataset, arguments.split, arguments.limit, arguments.seed)
    purified = torch.cat([purifier.purify(part) for part in torch.split(pixels, 250)])
    correct, n = count_right(classifier, purified, labels, device), len(labels)
    return {"correct": correct, "n": n, **compute_percentages(correct, n), "psnr_db": found.header.training["psnr_db"]}


def markdown(lambdas: Sequence[float], phis: Sequence[float], cells: dict[tuple[float, float], dict[str, Any]], about: str) -> str:
    """The grid beside the paper's."""
    rows = []
    for penalty in lambdas:
        row = [f"λ = {penalty:g}"]
        for phi in phis:
            cell = cells[penalty, phi]
            paper = f"{TABLE4[penalty][PHIS.index(phi)]:.2f}" if penalty in TABLE4 and phi in PHIS else ""
            if "collapsed" in cell:
                row.append(beside(paper, "training collapsed", measured=False))
            else:
                row.append(beside(paper, f"{interval(cell['correct'], cell['n'])}, {cell['psnr_db']:.1f} dB"))
        rows.append(row)
    parts = [
        "### Table 4",
        f"The paper's: “{TABLE4_CAPTION}”, {TABLE4_IMAGES}.",
        "Accuracy on purified clean images in %, with the 95 % interval of what was measured, and mean PSNR of 200 test images.",
        grid(["", *(f"φ = {phi:g}" for phi in phis)], rows),
        about,
        "Doubtful in the paper:\n\n" + "\n".join(f"- {doubt}" for doubt in TABLE4_DOUBTS),
    ]
    return "\n\n".join(parts) + "\n"


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, for argparse."""
    return tuple(float(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is absent, measure, write the table."""
    made = parser(__doc__)
    made.add_argument("--data-dir", type=Path, required=True, help="official files of CIFAR-10")
    made.add_argument("--classifier", required=True, help="a file of comdefend train-classifier for CIFAR-10")
    made.add_argument("--steps", type=int, default=200, help="of training, a cell; default 200")
    made.add_argument("--batch-size", type=int, default=8, help="images a step; default 8")
    made.add_argument("--limit", type=int, default=1000, help="images to classify; default 1000, as the paper")
    made.add_argument("--split", choices=("train", "test"), default="train", help="where they are from; default train, as the paper")
    made.add_argument("--lambdas", type=numbers, default=tuple(TABLE4), help="some lines, separated by commas; default all")
    made.add_argument("--phis", type=numbers, default=PHIS, help="some columns, separated by commas; default all")
    made.add_argument("--quick", action="store_true", help="6 cells of the 40")
    arguments = made.parse_args(argv)
    lambdas, phis = (QUICK_LAMBDAS, QUICK_PHIS) if arguments.quick else (arguments.lambdas, arguments.phis)
    if arguments.limit < 1:
        raise UsageError(f"the limit must be at least 1 image, not {arguments.limit}")
    make_folder(arguments.out / "table4")
    dataset = load_dataset("cifar10", arguments.data_dir, download=False)
    classifier = load_classifier(arguments.classifier, resolve_device(arguments.device), data="cifar10")
    cells = {pair: measure(*pair, dataset, classifier, arguments) for pair in product(lambdas, phis)}
    pixels, labels = sample(dataset, arguments.split, arguments.limit, arguments.seed)
    bare = interval(count_right(classifier, pixels, labels, resolve_device(arguments.device)), len(labels))
    part = "training" if arguments.split == "train" else "test"
    about = (
        f"ComDefend was trained for {arguments.steps} steps of {arguments.batch_size} images a cell, one seed; the paper trains for 30 "
        f"epochs of 50,000 images. Classifier {classifier.name} in place of Resnet50, {bare} without ComDefend, on n = {len(labels)} "
        f"random {part} images of CIFAR-10. {hardware(arguments.device)}, torch {torch.__version__}."
    )
    text = markdown(lambdas, phis, cells, f"{about}\n\n{arguments.note}".strip())
    print(text)
    records = [{"lambda": penalty, "phi": phi, **cell} for (penalty, phi), cell in cells.items()]
    write(arguments.out / "table4", text, {"table": 4, "cells": records, "about": about, "note": arguments.note})


if __name__ == "__main__":
    run(main)
