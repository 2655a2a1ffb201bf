#!/usr/bin/env python3
"""How often attacks are detected: true positives at a stated false alarm rate and AUC, for each attack, epsilon and squeezer.

    python benchmarks/detection.py --data cifar10 --classifier small --limit 200 --out docs/data/detection-cifar10.json

Attacks are made on the bare classifier (grey-box), and one more, "adaptive", on classifier and detector together: PGD, 40 steps from a
random start, makes the image misclassified and both answers alike, through the straight-through gradient. Only images that the classifier
gets right before and wrong after the attack count. The threshold comes from other clean images of the same data, by split conformal
prediction.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from json_out import emit
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import load_classifier
from comdefend_cli.data.labelled import load_labelled
from comdefend_cli.errors import ComdefendError
from comdefend_cli.evaluate.attacks.catalogue import make_attack
from comdefend_cli.evaluate.detection import Detector, choose_threshold, make_squeezers
from comdefend_cli.integrations.defended import Defended

RATE = 0.05


def attack_adaptively(model: nn.Module, squeezers: list[nn.Module], x: Tensor, y: Tensor, epsilon: float, steps: int = 40) -> Tensor:
    """PGD on the loss of the bare answer, less the distance of both answers."""
    behind = [Defended(squeezer, model, gradient=kind(squeezer)) for squeezer in squeezers]
    generator = torch.Generator().manual_seed(0)
    moved = (x + (torch.rand(x.shape, generator=generator) * 2 - 1) * epsilon).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        logits = model(moved)
        before = logits.softmax(1)
        distance = sum((each(moved).softmax(1) - before).abs().sum(1) for each in behind)
        # The margin is enough once the image is misclassified; from there on only the distance counts.
        others = logits.masked_fill(nn.functional.one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(1)
        margin = (others - logits.gather(1, y[:, None])[:, 0]).clamp(max=2.0)
        (gradient,) = torch.autograd.grad((margin - 4 * distance).sum(), moved)
        with torch.no_grad():
            moved = x + (moved + epsilon / 8 * gradient.sign() - x).clamp(-epsilon, epsilon)
            moved = moved.clamp(0, 1)
    return moved.detach()


def kind(squeezer: nn.Module) -> Any:
    """The most that the squeezer offers of a gradient."""
    return "straight-through" if "straight-through" in getattr(squeezer, "gradients", ()) else "identity"


def measure(scores: Tensor, clean: Tensor, threshold: float) -> dict[str, Any]:
    """Share above the threshold, and the area under the curve of true against false positives (Mann and Whitney)."""
    if not len(scores):
        return {"n": 0, "detected": None, "auc": None}
    above = (scores[:, None] > clean).float().mean() + 0.5 * (scores[:, None] == clean).float().mean()
    return {"n": len(scores), "detected": round(float((scores > threshold).float().mean()) * 100, 1), "auc": round(float(above), 3)}


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--limit", type=int, default=200, help="attacked images; as many again, or half of all, are for the threshold")
    parser.add_argument("--squeezers", nargs="+", default=["comdefend-fast", "jpeg:quality=75", "median:size=3"])
    parser.add_argument("--attacks", nargs="+", default=["fgsm", "bim", "mi-fgsm", "pgd", "deepfool"])
    parser.add_argument("--epsilons", nargs="+", type=int, default=[2, 8, 16])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    try:
        model = load_classifier(asked.classifier, data=asked.data).model
        found = load_labelled(asked.data, asked.data_dir, limit=2 * asked.limit, size=asked.size, download=False)
    except ComdefendError as error:
        parser.error(str(error))
    half = len(found) // 2
    x, y = found.floats()[:half], found.labels[:half]

    def right(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(part).argmax(1) for part in images.split(asked.batch)]) == y

    def quantize(images: Tensor) -> Tensor:
        return (images * 255).round().to(torch.uint8)

    held = right(x)
    attacked = {}
    for name in asked.attacks:
        for epsilon in asked.epsilons:
            images = make_attack(name).run(model, x, y, epsilon / 255, seed=0, batch=asked.batch)
            attacked[name, epsilon] = quantize(images)
            print(name, epsilon, flush=True)
    rows = []
    for spec in asked.squeezers:
        squeezers = make_squeezers([spec], torch.device("cpu"), "float32")
        detector = Detector(model, squeezers)
        clean = detector.score(found.pixels[half:], asked.batch)
        threshold = choose_threshold(clean, RATE)
        own = detector.score(found.pixels[:half], asked.batch)
        false = round(float((own > threshold).float().mean()) * 100, 1)
        sets = dict(attacked)
        for epsilon in asked.epsilons:
            pairs = zip(x.split(asked.batch), y.split(asked.batch), strict=True)
            parts = [attack_adaptively(model, list(squeezers), images, labels, epsilon / 255) for images, labels in pairs]
            sets["adaptive", epsilon] = quantize(torch.cat(parts))
        for (name, epsilon), images in sets.items():
            success = held & ~right(images.float() / 255)
            row = measure(detector.score(images[success], asked.batch) if success.any() else torch.empty(0), own, threshold)
            rows.append({"squeezer": spec, "attack": name, "epsilon": epsilon, "false_alarms": false, **row})
            print(json.dumps(rows[-1]), flush=True)
    machine = f"{platform.machine()}, torch {torch.__version__}"
    about = {"data": found.name, "classifier": Path(asked.classifier).stem, "images": half, "calibration": len(found) - half, "rate": RATE}
    emit({**about, "machine": machine, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
