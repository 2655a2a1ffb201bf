"""The tile grid and its noise, as pure functions."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from comdefend_cli.model import RADIUS
from comdefend_cli.tiles import PATCH, exact_grid, paper_grid, spans, window_noise


@given(st.integers(1, 700), st.integers(1, 300), st.integers(0, 30))
def test_spans_cover_once_with_their_halo(length: int, tile: int, halo: int) -> None:
    """Cores cover every pixel once, no core exceeds the tile, and every core has its halo or the border."""
    cut = spans(length, tile, halo)
    covered = np.concatenate([np.arange(length)[span.core] for span in cut])
    assert np.array_equal(covered, np.arange(length))
    sizes = {span.window.stop - span.window.start for span in cut}
    assert len(sizes) == 1, "windows of one size can be batched"
    for span in cut:
        assert 0 < span.core.stop - span.core.start <= tile
        assert span.window.start == 0 or span.core.start - span.window.start >= halo
        assert span.window.stop == length or span.window.stop - span.core.stop >= halo
        window = np.arange(length)[span.window]
        assert np.array_equal(window[span.inner], np.arange(length)[span.core])


def test_two_windows_reach_beyond_their_cores_on_one_side_only() -> None:
    """What no core needs is not computed: 2048 pixels in two tiles are two windows of 1024 + 18, in three of a third + 2 x 18."""
    for tile, size in ((1024, 1024 + 18), (2048, 2048), (700, 683 + 36)):
        assert {span.window.stop - span.window.start for span in spans(2048, tile, RADIUS)} == {size}


@given(st.integers(1, 150), st.integers(1, 150))
def test_paper_grid_is_patches_without_overlap(height: int, width: int) -> None:
    """Every pixel lies in one patch of at most 32x32 that sees nothing outside itself."""
    count = np.zeros((height, width), int)
    for tile in paper_grid(height, width):
        assert tile.rows.window == tile.rows.core
        assert tile.columns.window == tile.columns.core
        assert max(tile.shape) <= PATCH
        count[tile.rows.core, tile.columns.core] += 1
    assert (count == 1).all()


def test_area_adds_up_to_the_picture() -> None:
    """Areas of the cores sum to the picture's, which is what progress counts."""
    assert sum(tile.area for tile in exact_grid(123, 457, 50)) == 123 * 457


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 90), st.integers(1, 90))
def test_noise_of_a_pixel_does_not_depend_on_the_window(top: int, left: int, height: int, width: int) -> None:
    """Any window's noise is the same piece of one endless field."""
    field = window_noise(7, 2, slice(0, 300), slice(0, 300))
    rows, columns = slice(top, top + height), slice(left, left + width)
    assert torch.equal(window_noise(7, 2, rows, columns), field[:, rows, columns])


def test_noise_is_standard_normal_and_differs_by_seed() -> None:
    """Mean 0, standard deviation 1, and other seeds draw other noise."""
    one, other = (window_noise(seed, 12, slice(0, 128), slice(0, 128)) for seed in (0, 1))
    assert abs(float(one.mean())) < 0.01
    assert abs(float(one.std()) - 1) < 0.01
    assert abs(float((one * other).mean())) < 0.01
    assert RADIUS == 18
