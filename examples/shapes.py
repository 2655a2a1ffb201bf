"""What `defend_classifier.py` attacks: a small network that says which of six shapes lies on a piece of a photograph.

Images and network are made on the spot, in seconds, from the photographs in this folder, so that nothing is downloaded. The shapes are
translucent and of any colour: what the network learns of them is as easy to attack as what networks learn of photographs.
"""

from math import cos, sin, tau
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

FOLDER = Path(__file__).parent
PHOTOGRAPHS = ("astronaut.png", "cat.jpg")
SHAPES = ("disc", "square", "triangle", "cross", "ring", "bar")
SIDE = 48


def draw_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """Where the shape is, from 0 to 255: any place, size and, but for round ones, angle; four times as large as it is wanted."""
    mask = Image.new("L", (4 * SIDE, 4 * SIDE), 0)
    pen = ImageDraw.Draw(mask)
    radius = rng.uniform(0.24, 0.34) * 4 * SIDE
    x, y = rng.uniform(radius, 4 * SIDE - radius, 2)
    turn = rng.uniform(0, 1)

    def polygon(*corners: tuple[float, float], turn: float = turn) -> None:
        pen.polygon([(x + r * radius * cos(tau * (a + turn)), y + r * radius * sin(tau * (a + turn))) for r, a in corners], fill=255)

    if name in ("disc", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if name == "ring":
            inner = 0.62 * radius
            pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
    elif name in ("square", "triangle"):
        sides = 4 if name == "square" else 3
        polygon(*((1.0, i / sides) for i in range(sides)))
    else:
        for angle in (0.0, 0.25)[: 2 if name == "cross" else 1]:
            polygon((1.0, 0.045), (1.0, 0.455), (1.0, 0.545), (1.0, 0.955), turn=turn + angle)
    return mask


def make_images(count: int, seed: int, strength: float = 0.6) -> tuple[Tensor, Tensor]:
    """Images, float32 (count, 3, SIDE, SIDE) in [0, 1] as 8 bits hold them, and which shape is on each, (count,)."""
    rng = np.random.default_rng(seed)
    photographs = [np.array(Image.open(FOLDER / name).convert("RGB")) for name in PHOTOGRAPHS]
    images, labels = [], rng.integers(0, len(SHAPES), count)
    for label in labels:
        photograph = photographs[rng.integers(len(photographs))]
        top, left = rng.integers(0, np.array(photograph.shape[:2]) - SIDE)
        piece = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)
        mask = np.array(draw_shape(SHAPES[label], rng).resize((SIDE, SIDE), Image.Resampling.BOX))[..., None] / 255
        color = rng.choice([0.0, 255.0], 3) if rng.random() < 0.5 else rng.uniform(0, 255, 3)
        images.append(piece + strength * mask * (color - piece))
    pixels = np.stack(images).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255, torch.from_numpy(labels)


def train_classifier(steps: int = 400, batch: int = 64, seed: int = 0) -> nn.Module:
    """A small convolutional network from (N, 3, SIDE, SIDE) in [0, 1] to logits (N, 6)."""
    torch.manual_seed(seed)
    x, y = make_images(6000, seed=1)

    def stage(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU()]

    layers = [*stage(3, 24), *stage(24, 48), *stage(48, 96), nn.Conv2d(96, 96, 3, 1, 1), nn.BatchNorm2d(96), nn.ReLU()]
    classifier = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, len(SHAPES)))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,))
        loss = nn.functional.cross_entropy(classifier(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)
