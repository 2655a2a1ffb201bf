"""The interval that accuracies come with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from comdefend_cli.evaluate.stats import percentages, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(share: tuple[int, int]) -> None:
    """Wilson's interval equals SciPy's for every count."""
    correct, n = share
    oracle = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_a_perfect_score_is_not_certain() -> None:
    """All of 20 right still leaves room below, and none right room above."""
    assert percentages(20, 20) == {"accuracy": 100.0, "low": 83.9, "high": 100.0}
    assert percentages(0, 20) == {"accuracy": 0.0, "low": 0.0, "high": 16.1}


@pytest.mark.parametrize("share", [(1, 0), (3, 2), (-1, 5)])
def test_no_share_is_refused(share: tuple[int, int]) -> None:
    """Counts that cannot be have no interval."""
    with pytest.raises(ValueError, match="no share"):
        wilson(*share)
