"""The interval that a measured accuracy comes with."""

from __future__ import annotations

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
