"""The grid that lets an image of any size through the network in bounded memory.

An output pixel depends on the input up to `RADIUS` (18) pixels away. So a tile is computed
from a window that reaches 18 pixels further on every side, and only its core is kept. At
the image's own border the window stops with the image, where the network's zero
padding is what the whole-image computation has too: the result is the whole-image result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from comdefend_cli.network.model import RADIUS

#: Side of the paper's independent patches (section 3.2: "patch by patch").
PATCH = 32


@dataclass(frozen=True)
class Span:
    """One tile along one axis: where its window and its core start and stop, in image pixels."""

    window: slice
    core: slice

    @property
    def inner(self) -> slice:
        """The core, counted from the window's start."""
        return slice(self.core.start - self.window.start, self.core.stop - self.window.start)


@dataclass(frozen=True)
class Tile:
    """A tile: its spans down and across the image."""

    rows: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window, in pixels."""
        return (
            self.rows.window.stop - self.rows.window.start,
            self.columns.window.stop - self.columns.window.start,
        )

    @property
    def area(self) -> int:
        """Pixels of the core."""
        rows, columns = self.rows.core, self.columns.core
        return int((rows.stop - rows.start) * (columns.stop - columns.start))


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Cut `length` pixels into cores of at most `tile`, each in a window `halo` wider each way.

    Cores differ in size by at most one pixel's rounding, and all windows have one size (those at
    the border are moved inwards), so that they can be stacked into batches.
    """
    count = ceil(length / tile)
    core = ceil(length / count)
    size = min(core + halo * min(count - 1, 2), length)  # Two windows reach beyond their cores on one side only.
    cut = []
    for start in range(0, length, core):
        origin = min(max(start - halo, 0), length - size)
        cut.append(Span(slice(origin, origin + size), slice(start, min(start + core, length))))
    return cut


def exact_grid(height: int, width: int, tile: int) -> list[Tile]:
    """Tiles of at most `tile` pixels a side with a halo: no seam, the whole-image result."""
    return _cross(spans(height, tile, RADIUS), spans(width, tile, RADIUS))


def paper_grid(height: int, width: int) -> list[Tile]:
    """The paper's patches of 32x32 without overlap; what is left at the right and bottom is smaller."""
    return _cross(_patches(height), _patches(width))


def _patches(length: int) -> list[Span]:
    cuts = [slice(start, min(start + PATCH, length)) for start in range(0, length, PATCH)]
    return [Span(cut, cut) for cut in cuts]


def _cross(rows: list[Span], columns: list[Span]) -> list[Tile]:
    return [Tile(row, column) for row in rows for column in columns]
