"""Images of a training run: its curves, and what its networks rebuild.

Pillow draws them, and not the library for curves, which comes with an extra that `comdefend train` is to finish without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from comdefend_cli.imaging.raster import Raster
from comdefend_cli.inference.compare import draw_code
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.network.metrics import psnr
from comdefend_cli.network.model import ComDefend
from comdefend_cli.training.history import History

WIDTH, PANEL = 960, 300
#: Space around a panel's axes for title, numbers and name, in pixels.
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 40, 52
INK, GRID, FAINT, STRONG = (40, 40, 40), (222, 222, 222), (240, 190, 175), (190, 50, 30)
#: How many times each pixel of a small image is repeated, to be seen.
ZOOM = 3
GAP, LABEL = 4, 22

Points = Sequence[tuple[int, float]]


def draw_curves(history: History) -> Image.Image:
    """Loss (logarithmic), PSNR in dB and the logits' spread against steps, one panel each.

    Single steps are faint, their running mean over a fiftieth of the run is strong.

    Args:
        history: the run's; may be empty.

    Returns:
        An RGB image, `WIDTH` pixels wide.
    """
    loss = [(step, math.log10(value)) for step, value in _points(history, "loss") if value > 0]
    measured, logits = _points(history, history.measure), _points(history, "logit_rms")
    image = Image.new("RGB", (WIDTH, 3 * PANEL), "white")
    draw = ImageDraw.Draw(image)
    last = int(max(history.columns.get("step", ()), default=1))
    _panel(draw, 0, "training loss, logarithmic", loss, last, lambda value: f"{10**value:.2g}")
    _panel(draw, 1, "PSNR of the binarized reconstruction of test images, dB", measured, last, lambda value: f"{value:.1f}", dots=True)
    _panel(draw, 2, "root mean square of the logits", logits, last, lambda value: f"{value:.3g}")
    return image


def _points(history: History, name: str) -> list[tuple[int, float]]:
    """Steps and what was finite of a figure."""
    pairs = zip(history.columns.get("step", ()), history.columns.get(name, ()), strict=False)
    return [(int(step), value) for step, value in pairs if math.isfinite(value)]


def _panel(
    draw: ImageDraw.ImageDraw, index: int, title: str, points: Points, last: int, label: Callable[[float], str], *, dots: bool = False
) -> None:
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    left, right, upper, lower = LEFT, WIDTH - RIGHT, PANEL * index + TOP, PANEL * (index + 1) - BOTTOM
    draw.text((left, upper - 12), title, INK, font, anchor="ls")
    low, high = _range([value for _, value in points])

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, lower - (lower - upper) * (value - low) / (high - low)

    for value in np.linspace(low, high, 5).tolist():
        _, y = place(0, value)
        draw.line((left, y, right, y), GRID)
        if points:
            draw.text((left - 8, y), label(value), INK, small, anchor="rm")
    for step in _step_ticks(last):
        x, _ = place(step, low)
        draw.line((x, lower, x, lower + 5), INK)
        draw.text((x, lower + 8), str(step), INK, small, anchor="mt")
    draw.text(((left + right) / 2, lower + 28), "steps", INK, small, anchor="mt")
    if not points:
        draw.text(((left + right) / 2, (upper + lower) / 2), "not measured", INK, font, anchor="mm")
        return
    if dots:
        _line(draw, [place(*point) for point in points], STRONG, 2, radius=3)
        return
    _line(draw, [place(*point) for point in points], FAINT, 1, radius=2)
    _line(draw, [place(*point) for point in _smoothed(points)], STRONG, 2)


def _line(draw: ImageDraw.ImageDraw, places: list[tuple[float, float]], color: tuple[int, int, int], width: int, radius: int = 0) -> None:
    """A line through places; with a radius, dots where they are few enough to be told apart."""
    draw.line(places, color, width, joint="curve")
    for x, y in places if len(places) <= 60 else ():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), color)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From lowest to highest with a little room; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _step_ticks(last: int) -> list[int]:
    """Zero and round numbers of steps up to `last`, ten at most."""
    power = 10 ** max(0, math.floor(math.log10(last)) - 1)
    spacing = next(power * factor for factor in (1, 2, 5, 10, 20) if last / (power * factor) <= 9)
    return list(range(0, last + 1, spacing))


def _smoothed(points: Points) -> list[tuple[int, float]]:
    """Running means over the last fiftieth of the points."""
    width = max(1, len(points) // 50)
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    starts = np.maximum(0, np.arange(1, len(points) + 1) - width)
    means = (sums[1:] - sums[starts]) / (np.arange(1, len(points) + 1) - starts)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def draw_reconstructions(model: ComDefend, images: Tensor) -> Raster:
    """A grid: a column an image; rows are input, code and binarized reconstruction with its PSNR.

    Args:
        model: for the images' channels.
        images: uint8 (N, C, H, W), N at least 1.

    Returns:
        An image with the images' channels.
    """
    purifier = Purifier(model) if images.shape[1] == 3 else Purifier(None, model)
    code = purifier.code(images).permute(0, 2, 3, 1).cpu().numpy()
    after = purifier.purify(images)
    before, rebuilt = (batch.permute(0, 2, 3, 1).cpu().numpy() for batch in (images, after))
    rows = [list(before), [draw_code(item, images.shape[1]) for item in code], list(rebuilt)]
    bits = model.architecture.bits
    titles = ["input", f"code of {bits} bits a pixel, dealt to the channels as binary digits", "output, PSNR in dB"]
    notes = [f"{value:.1f}" for value in psnr(images, after).tolist()]
    return Raster(_grid(rows, titles, notes))


def _grid(rows: list[list[np.ndarray]], titles: list[str], notes: list[str]) -> np.ndarray:
    """Rows of cells (H, W, C), each under its title; notes below the last row; uint8, on white."""
    height, width, channels = rows[0][0].shape
    cell_height, cell_width = ZOOM * height + GAP, ZOOM * width + GAP
    size = (max(cell_width * len(rows[0]) + GAP, 420), (cell_height + LABEL) * len(rows) + LABEL)
    canvas = Image.new("RGB" if channels == 3 else "L", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    ink = INK if channels == 3 else INK[0]
    for row, (cells, title) in enumerate(zip(rows, titles, strict=True)):
        top = row * (cell_height + LABEL)
        draw.text((GAP, top + LABEL - 6), title, ink, font, anchor="ls")
        for column, cell in enumerate(cells):
            large = cell.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
            canvas.paste(Image.fromarray(large.squeeze(2) if channels == 1 else large), (GAP + column * cell_width, top + LABEL))
    for column, note in enumerate(notes):
        middle = GAP + column * cell_width + ZOOM * width / 2
        draw.text((middle, size[1] - LABEL + 2), note, ink, font, anchor="mt")
    return np.asarray(canvas).reshape(size[1], size[0], channels)
