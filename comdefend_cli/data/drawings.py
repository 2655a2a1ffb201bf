"""Drawings: flat fields, gradients, text, lines, stripes, chequers and dithered images, whose colours no photograph has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import cos, sin, tau

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from comdefend_cli.data.sources import Dataset, ImageArray

#: How many there are said to be, so that passes over them can be counted; each is drawn anew.
COUNT = 10_000
#: Side of the largest drawings: with smaller ones no pixel is far from all borders, with larger ones a batch has few.
LARGEST = 64
#: Share of the drawings whose colours are all corners of the colour cube: black, white, pure red and so on; in as many each channel may be
#: at either end of its range, as colours on the faces and edges of the cube have it.
PURE, EDGED = 0.4, 0.3
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?+-=/()%&@"

Color = tuple[int, int, int]
#: Makes a drawing of a side in pixels, in the colours that the second one gives.
Draw = Callable[[np.random.Generator, Callable[[], Color], int], Image.Image]


@dataclass(frozen=True)
class Drawings:
    """Drawings of one side, made as they are asked for.

    Attributes:
        side: in pixels.
    """

    side: int

    def __len__(self) -> int:
        return COUNT

    @property
    def channels(self) -> int:
        """3."""
        return 3

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` drawings, uint8 (size, 3, side, side)."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return torch.stack([torch.from_numpy(draw(rng, self.side)).permute(2, 0, 1) for _ in range(size)])


def make_drawings(side: int) -> Dataset:
    """Drawings as a data set; those for testing are always the same."""
    source = Drawings(side)
    test = source.batch(64, torch.Generator().manual_seed(0))
    return Dataset("drawings", source, ImageArray(test, torch.empty(0, dtype=torch.int64)))


def draw(rng: np.random.Generator, side: int) -> np.ndarray:
    """A drawing of a kind drawn by the generator, uint8 (side, side, 3); one in three is two kinds side by side."""
    kinds: tuple[Draw, ...] = (
        _fill,
        _fill,
        _fill,
        _blend,
        _write,
        _write,
        _scribble,
        _scribble,
        _stripe,
        _stripe,
        _stripe,
        _chequer,
        _chequer,
        _chequer,
        _dither,
        _scatter,
    )
    pick = _choose_colors(rng)
    image = np.asarray(kinds[rng.integers(len(kinds))](rng, pick, side))
    if rng.random() < 1 / 3 and side > 1:
        other = np.asarray(kinds[rng.integers(len(kinds))](rng, pick, side))
        cut = rng.integers(1, side)
        image = np.concatenate([image[:, :cut], other[:, cut:]], 1)
    if rng.random() < 0.5:
        image = image.swapaxes(0, 1)
    return np.array(image, order="C")


def _choose_colors(rng: np.random.Generator) -> Callable[[], Color]:
    """What gives one colour after another: corners of the cube, colours on its faces and edges among others, or any."""
    kind = rng.random()

    def pick() -> Color:
        values, ends = rng.integers(0, 256, 3), rng.integers(0, 2, 3) * 255
        at_end = kind < PURE or (kind < PURE + EDGED) & (rng.random(3) < 0.5)
        red, green, blue = np.where(at_end, ends, values).tolist()
        return red, green, blue

    return pick


def _measure(rng: np.random.Generator) -> int:
    """From 1 to 8 pixels, half of them 1."""
    return int(8 ** rng.random() ** 1.5)


def _fill(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    return Image.new("RGB", (side, side), pick())


def _blend(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """A gradient between four colours."""
    small = Image.fromarray(np.array([[pick(), pick()], [pick(), pick()]], dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BILINEAR)


@cache
def _load_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _write(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """Lines of text, smoothed or not."""
    image = Image.new("RGB", (side, side), pick())
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1" if rng.random() < 0.3 else "L"
    size, color = int(rng.integers(7, 25)), pick()
    for top in range(int(rng.integers(-size, 2)), side, int(size * rng.uniform(1.0, 1.6)) + 1):
        text = "".join(rng.choice(list(_LETTERS), side // 3))
        pen.text((int(rng.integers(-20, 3)), top), text, fill=color if rng.random() < 0.8 else pick(), font=_load_font(size))
    return image


def _scribble(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """Lines, rectangles, ellipses and triangles; half of the images drawn larger and made smaller, so that their edges are smooth."""
    scale = 4 if rng.random() < 0.5 else 1
    image = Image.new("RGB", (side * scale, side * scale), pick())
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 9))):
        x0, y0, x1, y1 = (int(value) for value in rng.integers(-side // 4, side + side // 4, 4) * scale)
        color, width = pick(), int(rng.integers(1, 4)) * scale
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        match int(rng.integers(5)):
            case 0:
                pen.rectangle(box, fill=color)
            case 1:
                pen.ellipse(box, outline=color, width=width)
            case 2:
                pen.polygon([(x0, y0), (x1, y1), (x0, y1)], fill=color)
            case _:
                pen.line((x0, y0, x1, y1), fill=color, width=width)
    return image.resize((side, side), Image.Resampling.BOX) if scale > 1 else image


def _stripe(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """Stripes of two or three colours, straight or at an angle."""
    colors = np.array([pick() for _ in range(rng.integers(2, 4))], dtype=np.uint8)
    angle = rng.uniform(0, tau) if rng.random() < 0.3 else 0.0
    rows, columns = np.mgrid[:side, :side]
    place = (rows * cos(angle) + columns * sin(angle)) / _measure(rng)
    return Image.fromarray(colors[np.floor(place).astype(int) % len(colors)])


def _chequer(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    colors = np.array([pick(), pick()], dtype=np.uint8)
    rows, columns = np.mgrid[:side, :side] // _measure(rng)
    return Image.fromarray(colors[(rows + columns) % 2])


def _dither(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """A gradient or a drawing in one bit."""
    image = (_blend, _write, _scribble)[rng.integers(3)](rng, pick, side)
    return image.convert("1").convert("RGB")


def _scatter(rng: np.random.Generator, pick: Callable[[], Color], side: int) -> Image.Image:
    """Squares of colours drawn one by one from a few."""
    colors = np.array([pick() for _ in range(rng.integers(2, 9))], dtype=np.uint8)
    cell = _measure(rng)
    grid = rng.integers(0, len(colors), (-(-side // cell),) * 2)
    return Image.fromarray(colors[grid.repeat(cell, 0).repeat(cell, 1)[:side, :side]])
