"""Images of what ComDefend does: input, code, output and their difference."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from comdefend_cli.imaging.raster import Raster
from comdefend_cli.inference.purifier import Purifier

#: How many times differences are amplified, around middle grey.
AMPLIFY = 8
GAP = 4
LABELS = ("input", "code", "output", f"change x {AMPLIFY}")
#: Pixels from left to right of a panel, from which on it is labelled.
SMALLEST_LABELLED = 64


def draw_code(code: np.ndarray, channels: int) -> np.ndarray:
    """The code as an image: its bits dealt to the channels in order, as digits of a binary number.

    Args:
        code: zeros and ones, uint8 (H, W, bits).
        channels: 1 or 3.

    Returns:
        uint8 (H, W, channels). Bits have no order of weight in the network, so this shows structure, not colour.
    """
    planes = []
    for part in np.array_split(np.arange(code.shape[2]), channels):
        digits = 2 ** np.arange(len(part))[::-1]
        planes.append(np.round(code[..., part] @ digits * (255 / digits.sum())))
    return np.stack(planes, axis=2).astype(np.uint8)


def amplify(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`after - before`, `AMPLIFY` times, around 128; uint8, the shape of both."""
    difference = after.astype(np.int16) - before.astype(np.int16)
    return np.clip(128 + AMPLIFY * difference, 0, 255).astype(np.uint8)


def measure_comparison(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels of the comparison of an image of that size."""
    return 4 * width + 3 * GAP, height + _measure_label(width)


def draw_comparison(purifier: Purifier, before: np.ndarray, after: np.ndarray) -> Raster:
    """Input, code, output and amplified difference side by side; uint8 (H, W, C) each, under labels where these fit."""
    code = purifier.code(torch.from_numpy(before).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    gap = np.full((before.shape[0], GAP, before.shape[2]), 255, np.uint8)
    parts = [before, gap, draw_code(code, before.shape[2]), gap, after, gap, amplify(before, after)]
    row = np.concatenate(parts, axis=1)
    return Raster(np.concatenate([_draw_labels(before.shape[1], row.shape[2]), row]) if _measure_label(before.shape[1]) else row)


def _measure_label(width: int) -> int:
    """Height of the labels over panels that are so wide; 0 where there is no room for them."""
    return 0 if width < SMALLEST_LABELLED else max(16, width // 16)


def _draw_labels(width: int, channels: int) -> np.ndarray:
    """A strip that names the panels, black on white; uint8 (H, W, C)."""
    height = _measure_label(width)
    strip = Image.new("L", (measure_comparison(width, 0)[0], height), 255)
    font = ImageFont.load_default(height * 0.7)
    for place, label in enumerate(LABELS):
        left = place * (width + GAP)
        ImageDraw.Draw(strip).text((left + width / 2, height / 2), label, fill=0, font=font, anchor="mm")
    return np.repeat(np.array(strip)[..., None], channels, axis=2)
