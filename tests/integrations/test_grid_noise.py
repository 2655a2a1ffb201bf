"""Noise in whole levels, exactly: the table of probabilities, what a bound allows for, and the statistics of a certificate."""

from __future__ import annotations

from math import ceil
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comdefend_cli.errors import UsageError
from comdefend_cli.integrations.grid_noise import GridNoise, bound_share, find_radius

stats = pytest.importorskip("scipy.stats")
special = pytest.importorskip("scipy.special")


def numbers(*values: int) -> np.random.Generator:
    """A stream that gives these whole numbers when asked for some from 0 to 2**63 - 1."""

    def integers(low: int, high: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        assert (low, high, dtype) == (0, 2**63, np.int64)
        return np.array(values, dtype).reshape(shape)

    return cast(np.random.Generator, SimpleNamespace(integers=integers))


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.004, 2.0), place=st.floats(-1, 1))
@example(sigma=1.08, place=0.0)
def test_each_level_has_its_share_of_the_numbers(sigma: float, place: float) -> None:
    """Of 2**63 numbers those below the normal share up to the edge of a level give at most that level, and the next one gives more."""
    noise, reach = GridNoise(sigma), 255 * sigma * 10  # In the order of the code: the last digit hangs on it.
    assert noise.most == ceil(reach)
    level = round(place * 6 * 255 * sigma)
    edge = int(np.float64(special.ndtr((level + 0.5) / (255 * sigma))) * 2.0**63)
    drawn = noise.draw((2, 2), numbers(0, edge - 1, edge, 2**63 - 1))
    assert drawn.dtype == np.int16 and drawn.shape == (2, 2)
    assert drawn[0, 1] <= level < drawn[1, 0]
    assert -noise.most <= drawn[0, 0] < -6 * 255 * sigma and 6 * 255 * sigma < drawn[1, 1] <= noise.most
    # What rounding can do to the table, once for each of its levels and each value of an image.
    assert noise.bound_error(12) == 12 * noise.bound_error(1) and noise.bound_error(1) == (2 * ceil(reach) + 1) * 2.0**-52


def test_copies_are_cut_at_both_ends_of_the_range() -> None:
    """The image is added to the noise of each value; below 0 and above 255 there is nothing."""
    noise = GridNoise(0.02)
    image = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(1, 2, 2)
    stream = np.random.default_rng(3)
    drawn = noise.draw((500, 1, 2, 2), np.random.default_rng(3))
    copies = noise.add(image, 500, stream)
    assert copies.dtype == torch.uint8
    assert np.array_equal(copies.numpy(), np.clip(drawn + image.numpy().astype(int), 0, 255))
    assert drawn.min() < -1 and drawn.max() > 1


@pytest.mark.parametrize("sigma", [0, -0.1, 2.01, float("nan"), "0.25", None])
def test_sigmas_out_of_range_are_refused(sigma: Any) -> None:
    """Above 0 and at most 2, whole numbers too."""
    with pytest.raises(UsageError, match="sigma must be above 0 and at most 2"):
        GridNoise(sigma)
    assert GridNoise(2).most == 5100 and "_cuts" not in repr(GridNoise(1)) and GridNoise(1) == GridNoise(1.0)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.05, 0.4]))
def test_shares_are_bounded_as_by_clopper_and_pearson(n: int, part: float, alpha: float) -> None:
    """SciPy's own one-sided interval says the same; the radius is that of a normal variable, and nothing up to one half."""
    count = round(n * part)
    interval = stats.binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    least = bound_share(count, n, alpha)
    assert least == pytest.approx(interval.low, abs=1e-9)
    assert find_radius(0.25, least) == pytest.approx(max(0.0, 0.25 * stats.norm.ppf(least)), abs=1e-9)
    assert isinstance(least, float) and isinstance(find_radius(0.25, least), float)
