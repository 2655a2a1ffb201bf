"""What settings of training are refused for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from comdefend_cli.errors import UsageError


def check_common(config: Any) -> None:
    """What every training has."""
    check(config, "batch_size", lambda value: value >= 1, "at least 1")
    check(config, "seed", lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1")
    check(config, "lr", lambda value: value is None or 0 < value < math.inf, "above 0")
    if config.precision not in ("float32", "bfloat16"):
        raise UsageError(f"training knows float32 and bfloat16, not {config.precision!r}")


def list_values(value: float | list[float]) -> list[float]:
    """The values of a setting of all the data, or of each part of it."""
    return value if isinstance(value, list) else [value]


def check(config: object, names: str, holds: Callable[[Any], bool], must: str) -> None:
    """Refuse a value of which something does not hold, by the name of its option."""
    for name in names.split():
        if not holds(getattr(config, name)):
            raise UsageError(f"{name.replace('_', '-')} must be {must}, not {getattr(config, name)}")
