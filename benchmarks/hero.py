#!/usr/bin/env python3
"""The picture at the top of README: a photograph, attacked, and purified, each with what a classifier says of it.

    python benchmarks/hero.py --out docs/pictures/hero.png

The photograph is scikit-image's cup of coffee, its middle, at 224x224; the classifier EfficientNet-Lite0 (extra `[imagenet]`). The attack
is BIM at epsilon 8/255, 10 steps of 2/255, on the classifier alone (grey-box), and the attacked image is rounded to 8 bits, as a saved file
is. The purifier is the default. One photograph of those on which it works: how often that is, `comdefend evaluate` measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import EFFICIENTNET, load_classifier
from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.writing import write_image
from comdefend_cli.inference.purifier import Purifier

#: ImageNet's classes that are met here; of another its number is shown.
NAMES = {633: "loupe", 925: "consomme", 967: "espresso", 968: "cup"}
SIDE, GAP, HEAD, FOOT = 224, 16, 28, 34
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
INK, RIGHT, WRONG = (28, 33, 39), (0, 110, 60), (190, 30, 20)


def main() -> None:
    """Attack, purify, draw, and print what the classifier says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the image to write, replaced if it is there")
    arguments = parser.parse_args()
    classifier = load_classifier(EFFICIENTNET, torch.device("cpu")).model
    purifier = Purifier.from_pretrained(device="cpu", precision="float32")
    clean = read_photograph()
    label = int(classifier(clean).argmax())
    attacked = attack(classifier, clean, torch.tensor([label]))
    panels = [("clean", clean), ("attacked, epsilon 8/255", attacked), ("purified", purifier(attacked))]
    sheet = Image.new("RGB", (len(panels) * (SIDE + GAP) + GAP, HEAD + SIDE + FOOT), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for index, (title, image) in enumerate(panels):
        left = GAP + index * (SIDE + GAP)
        said, sure = classify(classifier, image)
        text = f"{NAMES.get(said, f'class {said}')}, {sure:.0%}"
        print(f"{title:24} {text}")
        sheet.paste(Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy()), (left, HEAD))
        pen.text((left, HEAD - 7), title, INK, ImageFont.load_default(15), anchor="ls")
        pen.text((left, HEAD + SIDE + 22), text, RIGHT if said == label else WRONG, ImageFont.load_default(18), anchor="ls")
    write_image(arguments.out, from_pillow(sheet), overwrite=True)


def read_photograph() -> Tensor:
    """The photograph, float32 (1, 3, 224, 224) in [0, 1]."""
    image = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255


def attack(classifier: nn.Module, clean: Tensor, label: Tensor) -> Tensor:
    """BIM (Kurakin et al., 2017) on the classifier, rounded to 8 bits."""
    image = clean
    for _ in range(STEPS):
        image = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(classifier(image), label), image)
        image = torch.clamp(image.detach() + STEP * gradient.sign(), clean - EPSILON, clean + EPSILON).clamp(0, 1)
    return (image * 255).round() / 255


@torch.no_grad()
def classify(classifier: nn.Module, image: Tensor) -> tuple[int, float]:
    """The class that is held for the likeliest, and how likely it is held to be."""
    sure, said = classifier(image).softmax(1)[0].max(0)
    return int(said), float(sure)


if __name__ == "__main__":
    main()
