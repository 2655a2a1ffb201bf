"""Specs of defences: NAME[:key=value[,key=value...]], their options with type and range, and the canonical form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comdefend_cli.errors import UsageError


@dataclass(frozen=True)
class Option:
    """An option of a defence.

    Attributes:
        parse: makes the value of its text; raises ValueError where that is none.
        what: what a value is, to complete "must be ...".
        default: of the value.
        shown: whether the canonical form says it even when it has its default.
        needed: whether it must be given.
    """

    parse: Callable[[str], Any]
    what: str
    default: Any = None
    shown: bool = False
    needed: bool = False


def allow_whole(low: int, high: int, default: int, *, shown: bool = False) -> Option:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Option(parse, f"a whole number from {low} to {high}", default, shown)


def allow_real(low: float, default: float | None, *, above: bool = False, shown: bool = False) -> Option:
    """A finite number of at least `low`, or `above` it."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value < math.inf or (above and value == low):
            raise ValueError
        return value

    return Option(parse, f"a number {'above ' if above else 'of at least '}{low:g}", default, shown)


def allow_one_of(*names: str) -> Option:
    """One of some names; the first is the default."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Option(parse, " or ".join(names), names[0])


def allow_file() -> Option:
    """The path of a file, which must be given."""

    def parse(text: str) -> str:
        if not text:
            raise ValueError
        return text

    return Option(parse, "a file", shown=True, needed=True)


def split_spec(spec: str) -> tuple[str, str]:
    """Name and options of a spec. The options begin at the first colon before a "key=", so that paths may hold colons."""
    found = re.search(r":(?=[a-z-]+=)", spec)
    return (spec[: found.start()], spec[found.end() :]) if found else (spec, "")


def parse_options(name: str, text: str, options: dict[str, Option]) -> dict[str, Any]:
    """Values of all options, given or by default.

    Args:
        name: of the defence, for messages.
        text: "key=value,key=value", or "".
        options: those it has.

    Raises:
        UsageError: an unknown key, a value that is none, a key twice, or one that is missing.
    """
    values: dict[str, Any] = {}
    for part in re.split(r",(?=[a-z-]+=)", text) if text else []:
        key, _, value = part.partition("=")
        if key not in options:
            known = ", ".join(options) if options else "it has none"
            raise UsageError(f"defence {name} has no option {key!r}: {'use ' if options else ''}{known}")
        if key in values:
            raise UsageError(f"defence {name}: {key} is given twice")
        try:
            values[key] = options[key].parse(value)
        except ValueError:
            raise UsageError(f"defence {name}: {key} must be {options[key].what}, not {value!r}") from None
    for key, option in options.items():
        if option.needed and key not in values:
            raise UsageError(f"defence {name} needs {option.what}: {name}:{key}=FILE")
    return {key: values.get(key, option.default) for key, option in options.items()}


def write_spec(name: str, values: dict[str, Any], options: dict[str, Option]) -> str:
    """The spec that says the same in one way only: options in their order, those at their default left out unless `shown`."""
    said = [f"{key}={_plain(values[key])}" for key, option in options.items() if option.shown or values[key] != option.default]
    return f"{name}:{','.join(said)}" if said else name


def _plain(value: Any) -> str:
    """20.0 as 20."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
