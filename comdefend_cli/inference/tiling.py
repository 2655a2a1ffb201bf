"""The grid that lets an image of any size through the networks in bounded memory, and the batches that its windows go in.

An output pixel depends on the input up to the networks' halo away (18 pixels in the paper's). So a tile is computed from a window that
reaches so much further on every side, and only its core is kept. At the image's own border the window stops with the
image, where the networks' zero padding is what the whole-image computation has too: the result is the whole-image result.
Networks that see squares of pixels must see the same squares in a window as in the image: windows and cores begin on their grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

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


#: Windows of one shape, each with the index of its image.
Batch = list[tuple[int, Tile]]


def cut_side(length: int, tile: int, halo: int, step: int = 1) -> list[Span]:
    """Cut `length` pixels into cores of at most `tile`, each in a window `halo` wider each way.

    Cores differ in size as little as the grid lets them, and all windows have one size (those at
    the border are moved inwards), so that they can be stacked into batches.

    Args:
        length: of the side.
        tile: a smaller one than `step` counts as such.
        halo: a multiple of `step`.
        step: side of the squares of the grid, on which all windows and cores begin.
    """
    count = ceil(length / (max(tile // step, 1) * step))
    core = ceil(length / count / step) * step
    size = core + halo * min(count - 1, 2)  # Two windows reach beyond their cores on one side only.
    size = min(size + length % step, length)  # The last one ends with the image, and begins on the grid.
    cut = []
    for start in range(0, length, core):
        origin = min(max(start - halo, 0), length - size)
        cut.append(Span(slice(origin, origin + size), slice(start, min(start + core, length))))
    return cut


def cut_tiles(height: int, width: int, tile: int, halo: int, step: int = 1) -> list[Tile]:
    """Tiles of at most `tile` pixels a side with a halo, on a grid of squares: no seam, the whole-image result."""
    return _cross(cut_side(height, tile, halo, step), cut_side(width, tile, halo, step))


def cut_patches(height: int, width: int) -> list[Tile]:
    """The paper's patches of 32x32 without overlap; what is left at the right and bottom is smaller."""
    cuts = ([slice(start, min(start + PATCH, length)) for start in range(0, length, PATCH)] for length in (height, width))
    return _cross(*([Span(cut, cut) for cut in side] for side in cuts))


def _cross(rows: list[Span], columns: list[Span]) -> list[Tile]:
    return [Tile(row, column) for row in rows for column in columns]


def batch_windows(grid: list[Tile], count: int, pixels: int) -> Iterator[Batch]:
    """Windows of one shape at a time over `count` images, at most `pixels` together but at least one."""
    by_shape: dict[tuple[int, int], Batch] = {}
    for index in range(count):
        for tile in grid:
            batch = by_shape.setdefault(tile.shape, [])
            batch.append((index, tile))
            if (len(batch) + 1) * tile.shape[0] * tile.shape[1] > pixels:
                yield by_shape.pop(tile.shape)
    yield from by_shape.values()
