"""Noise by place: one endless field, of which every window is a piece."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comdefend_cli.inference.noise import PERIOD, draw_window, take_window


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 90), st.integers(1, 90))
def test_noise_of_a_pixel_does_not_depend_on_the_window(top: int, left: int, height: int, width: int) -> None:
    """Any window's noise is the same piece of one endless field."""
    whole = draw_window(7, 2, slice(0, 300), slice(0, 300))
    rows, columns = slice(top, top + height), slice(left, left + width)
    assert torch.equal(draw_window(7, 2, rows, columns), whole[:, rows, columns])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1000, 1500), st.integers(1000, 1300))
@example(0, 0, PERIOD, PERIOD)
@example(7, 5000, 10, 10)
def test_noise_that_is_kept_is_that_which_is_drawn(top: int, left: int, height: int, width: int) -> None:
    """What large windows and GPUs take out of one period, drawn once, is what is drawn anew, at any place and of any size."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    assert torch.equal(take_window(3, 1, rows, columns, torch.device("cpu")), draw_window(3, 1, rows, columns))


def test_noise_repeats_after_its_period_and_not_before() -> None:
    """Two periods down and across are the same noise; half a period is other noise."""
    here, there = (draw_window(1, 1, slice(at, at + 64), slice(2 * at, 2 * at + 64)) for at in (0, PERIOD))
    half = draw_window(1, 1, slice(PERIOD // 2, PERIOD // 2 + 64), slice(0, 64))
    assert torch.equal(here, there)
    assert abs(float((here * half).mean())) < 0.1


def test_noise_is_standard_normal_and_differs_by_seed() -> None:
    """Mean 0, standard deviation 1, and other seeds draw other noise."""
    one, other = (draw_window(seed, 12, slice(0, 128), slice(0, 128)) for seed in (0, 1))
    assert abs(float(one.mean())) < 0.01
    assert abs(float(one.std()) - 1) < 0.01
    assert abs(float((one * other).mean())) < 0.01
