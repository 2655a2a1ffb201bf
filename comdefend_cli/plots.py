"""Pictures of a training run, drawn with Pillow: its curves, and what its networks rebuild."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from comdefend_cli.compare import code_image
from comdefend_cli.images import Picture
from comdefend_cli.model import ComDefend
from comdefend_cli.purifier import Purifier
from comdefend_cli.train import Report

WIDTH, HEIGHT, MARGIN = 900, 300, 70
INK, GRID = (40, 40, 40), (220, 220, 220)
#: How many times each pixel of a small picture is repeated, to be seen.
ZOOM = 3


def curves(history: Sequence[Report]) -> Image.Image:
    """Loss (logarithmic), PSNR and the logits' spread against steps, one panel each, RGB."""
    panels = [
        ("loss (eq. 3), log10", [(report.step, math.log10(max(report.loss, 1e-12))) for report in history]),
        ("PSNR of the binarised reconstruction, dB", [(report.step, report.psnr) for report in history if report.psnr is not None]),
        ("logits, root mean square", [(report.step, report.logit_rms) for report in history]),
    ]
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for index, (title, points) in enumerate(panels):
        _panel(ImageDraw.Draw(image), HEIGHT * index, title, [point for point in points if math.isfinite(point[1])])
    return image


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, points: Sequence[tuple[int, float]]) -> None:
    font = ImageFont.load_default(14)
    draw.text((MARGIN, top + 10), title, INK, font)
    left, right, upper, lower = MARGIN, WIDTH - 20, top + 35, top + HEIGHT - 35
    if not points:
        return
    steps, values = [point[0] for point in points], [point[1] for point in points]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    last = max(steps[-1], 1)

    def place(step: int, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, lower - (lower - upper) * (value - low) / (high - low)

    for share in (0, 0.25, 0.5, 0.75, 1):
        value, step = low + share * (high - low), round(share * last)
        _, y = place(0, value)
        x, _ = place(step, low)
        draw.line((left, y, right, y), GRID)
        draw.text((8, y - 8), f"{value:.4g}", INK, font)
        draw.text((x - 10, lower + 8), str(step), INK, font)
    draw.line([place(*point) for point in points], (200, 60, 40), 2)


def reconstructions(model: ComDefend, images: Tensor) -> Picture:
    """A grid: a column an image; rows are input, code and binarised reconstruction.

    Args:
        model: for the images' channels.
        images: uint8 (N, C, H, W).
    """
    purifier = Purifier(model) if images.shape[1] == 3 else Purifier(None, model)
    code = purifier.code(images).permute(0, 2, 3, 1).cpu().numpy()
    before, after = (batch.permute(0, 2, 3, 1).cpu().numpy() for batch in (images, purifier.purify(images)))
    rows: list[Sequence[np.ndarray]] = [list(before), [code_image(item, images.shape[1]) for item in code], list(after)]
    grid = np.concatenate([np.concatenate([_frame(cell) for cell in row], axis=1) for row in rows])
    return Picture(grid)


def _frame(cell: np.ndarray) -> np.ndarray:
    large = cell.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    return np.pad(large, ((1, 1), (1, 1), (0, 0)), constant_values=255)
