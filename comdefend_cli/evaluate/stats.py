"""The interval that a measured accuracy comes with, and whether two that were measured on the same images differ."""

from __future__ import annotations

from collections.abc import Sequence

from comdefend_cli.runtime.extras import require


def compute_percentages(correct: int, n: int) -> dict[str, float]:
    """`accuracy` in percent, with `low` and `high` of Wilson's 95 % score interval (Wilson, 1927), rounded to a tenth.

    Args:
        correct: from 0 to n.
        n: at least 1.

    Raises:
        ValueError: outside those ranges.
        UsageError: SciPy is not installed.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"no share: {correct} of {n}")
    interval = require("scipy.stats", extra="evaluate").binomtest(correct, n).proportion_ci(0.95, method="wilson")
    shares = {"accuracy": correct / n, "low": interval.low, "high": interval.high}
    return {name: round(100 * float(share), 1) for name, share in shares.items()}


#: Probability, of so great a difference by chance alone, below which one counts as measured.
SIGNIFICANT = 0.05


def compare_paired(one: Sequence[bool], other: Sequence[bool]) -> float:
    """How probable a difference as great as that of two measurements is by chance: McNemar's exact test (McNemar, 1947), two-sided.

    Args:
        one, other: whether each image was classified right; of the longer one, the first images are taken.

    Returns:
        From 0 to 1; 1 where the two find the same images right.

    Raises:
        UsageError: SciPy is not installed.
    """
    gained = sum(a and not b for a, b in zip(one, other, strict=False))
    lost = sum(b and not a for a, b in zip(one, other, strict=False))
    if not gained + lost:
        return 1.0
    return float(require("scipy.stats", extra="evaluate").binomtest(gained, gained + lost, 0.5).pvalue)
