"""What the examples attack: a classifier of a few thousand weights that says which of three photographs a 32x32 patch is from.

It is made on the spot from the images in this folder, so that the examples need no download and no time. Its accuracies
show how the parts are used; they say nothing about any defence. `comdefend evaluate` does.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

FOLDER = Path(__file__).parent
PHOTOGRAPHS = ("astronaut.png", "cat.jpg", "camera.png")


def patches(rows: slice, step: int) -> tuple[Tensor, Tensor]:
    """Patches (N, 3, 32, 32) in [0, 1] of those rows of each photograph, one every `step` pixels, and the photograph's number (N,)."""
    found = []
    for name in PHOTOGRAPHS:
        image = Image.open(FOLDER / name).convert("RGB")
        pixels = torch.from_numpy(np.array(image)[rows]).permute(2, 0, 1) / 255
        found.append(pixels.unfold(1, 32, step).unfold(2, 32, step).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32))
    return torch.cat(found), torch.arange(len(found)).repeat_interleave(len(found[0]))


def held_out_images(count: int = 24) -> tuple[Tensor, Tensor]:
    """Some patches of the lower halves, which the classifier has not seen, with their labels."""
    x, y = patches(slice(128, 256), 32)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
    return x[chosen], y[chosen]


def train_classifier(steps: int = 120) -> nn.Module:
    """A small convolutional network from (N, 3, H, W) in [0, 1] to logits (N, 3), trained on the upper halves."""
    torch.manual_seed(1)
    x, y = patches(slice(0, 128), 24)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()]
    classifier = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(PHOTOGRAPHS)))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x), y).backward()
        optimizer.step()
    return classifier.eval().requires_grad_(False)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """How many of the images are classified right, in percent."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())
