"""The interval that accuracies come with."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comdefend_cli.evaluate.stats import compute_percentages

#: Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(share: tuple[int, int]) -> None:
    """Accuracy and interval follow from Wilson's formula, to the tenth of a percent, for every count."""
    correct, n = share
    centre = (correct / n + Z**2 / (2 * n)) / (1 + Z**2 / n)
    spread = Z * math.sqrt(correct * (n - correct) / n**3 + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    expected = {"accuracy": correct / n, "low": centre - spread, "high": centre + spread}
    found = compute_percentages(correct, n)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(100 * value, abs=0.0501) and 0 <= found[name] <= 100
        assert f"{found[name]:.1f}" != "-0.0"


def test_a_perfect_score_is_not_certain() -> None:
    """All of 20 right still leaves room below, and none right room above."""
    assert compute_percentages(20, 20) == {"accuracy": 100.0, "low": 83.9, "high": 100.0}
    assert compute_percentages(0, 20) == {"accuracy": 0.0, "low": 0.0, "high": 16.1}


@pytest.mark.parametrize("share", [(1, 0), (3, 2), (-1, 5)])
def test_no_share_is_refused(share: tuple[int, int]) -> None:
    """Counts that cannot be have no interval."""
    with pytest.raises(ValueError, match="no share"):
        compute_percentages(*share)
