"""The tile grid, as pure functions."""

from __future__ import annotations

from math import ceil

import numpy as np
from conftest import HALO
from hypothesis import given
from hypothesis import strategies as st

from comdefend_cli.inference.tiling import PATCH, cut_patches, cut_side, cut_tiles


@given(st.integers(1, 700), st.integers(4, 300), st.integers(0, 30), st.sampled_from([1, 2, 4]))
def test_spans_cover_once_with_their_halo(length: int, tile: int, halo: int, step: int) -> None:
    """Cores cover every pixel once, no core exceeds the tile, every core has its halo or the border, and all begins on the grid."""
    halo *= step
    cut = cut_side(length, tile, halo, step)
    covered = np.concatenate([np.arange(length)[span.core] for span in cut])
    assert np.array_equal(covered, np.arange(length))
    sizes = {span.window.stop - span.window.start for span in cut}
    assert len(sizes) == 1, "windows of one size can be batched"
    assert len(cut) <= ceil(length / (tile // step * step)), "no more tiles than it takes"
    for span in cut:
        assert 0 < span.core.stop - span.core.start <= tile
        assert span.window.start % step == span.core.start % step == 0
        # A window that ends off the grid is continued there as the image is not: its last square is nobody's halo.
        whole = span.window.stop - (span.window.stop - span.window.start) % step
        assert span.window.stop == length or whole - span.core.stop >= halo
        assert span.window.start == 0 or span.core.start - span.window.start >= halo
        assert span.window.stop == length or span.window.stop - span.core.stop >= halo
        window = np.arange(length)[span.window]
        assert np.array_equal(window[span.inner], np.arange(length)[span.core])


def test_two_windows_reach_beyond_their_cores_on_one_side_only() -> None:
    """What no core needs is not computed: 2048 pixels in two tiles are two windows of 1024 + 18, in three of a third + 2 x 18."""
    for tile, size in ((1024, 1024 + 18), (2048, 2048), (700, 683 + 36)):
        assert {span.window.stop - span.window.start for span in cut_side(2048, tile, HALO)} == {size}


@given(st.integers(1, 150), st.integers(1, 150))
def test_paper_grid_is_patches_without_overlap(height: int, width: int) -> None:
    """Every pixel lies in one patch of at most 32x32 that sees nothing outside itself."""
    count = np.zeros((height, width), int)
    for tile in cut_patches(height, width):
        assert tile.rows.window == tile.rows.core
        assert tile.columns.window == tile.columns.core
        assert max(tile.shape) <= PATCH
        count[tile.rows.core, tile.columns.core] += 1
    assert (count == 1).all()


def test_area_adds_up_to_the_image() -> None:
    """Areas of the cores sum to the image's, which is what progress counts; unless told otherwise, cores begin on any pixel."""
    grid = cut_tiles(123, 457, 50, HALO)
    assert sum(tile.area for tile in grid) == 123 * 457 and {tile.rows.core.start for tile in grid} == {0, 41, 82}
