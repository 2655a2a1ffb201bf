"""The interval that a measured accuracy comes with."""

from __future__ import annotations

import math

#: Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (Wilson, 1927) of a share.

    Args:
        correct: from 0 to n.
        n: at least 1.

    Returns:
        Its ends, from 0 to 1.

    Raises:
        ValueError: outside those ranges.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"no share: {correct} of {n}")
    share = correct / n
    centre = share + Z**2 / (2 * n)
    spread = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    # The ends are exact where rounding would leave them a hair outside.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == n else (centre + spread) / scale
    return low, high


def percentages(correct: int, n: int) -> dict[str, float]:
    """`accuracy`, `low` and `high` in percent, rounded to a tenth."""
    low, high = wilson(correct, n)
    return {"accuracy": round(100 * correct / n, 1), "low": round(100 * low, 1), "high": round(100 * high, 1)}
