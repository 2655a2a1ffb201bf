"""L-infinity distances as people write them: "8/255", or 8 of 255 levels."""

from __future__ import annotations

import math
import re

from comdefend_cli.errors import UsageError

_NUMBER = r"\d+(\.\d*)?|\.\d+"


def parse_epsilons(option: str, text: str) -> tuple[float, ...]:
    """Those of a list with commas, ascending, each once; the rest as of :func:`parse_epsilon`."""
    return tuple(sorted({parse_epsilon(option, part) for part in text.split(",")}))


def parse_epsilon(option: str, text: str) -> float:
    """An L-infinity distance in 8-bit levels: 8.0 of "8/255" and of "8".

    Raises:
        UsageError: no such number; or one between 0 and 1, which is meant for pixels in [0, 1], and would be less than one level.
    """
    found = re.fullmatch(rf"\s*({_NUMBER})\s*(/\s*255)?\s*", text)
    if found is None:
        raise UsageError(f"{option} takes numbers such as 8/255, or 8 for the same, not {text.strip()!r}")
    levels = float(found[1])
    if not found[3] and 0 < levels < 1:
        meant = 255 * levels
        raise UsageError(f"{option} {levels:g}: did you mean {_shorten(meant)} ({levels:g} x 255)? It counts 8-bit levels: 8 is 8/255")
    return levels


def _shorten(value: float) -> str:
    """To three digits, or as a whole number where it is one but for rounding: 7.65, and 8 of 0.0313725 x 255."""
    return f"{round(value)}" if math.isclose(value, round(value), rel_tol=2e-3) else f"{value:.3g}"
