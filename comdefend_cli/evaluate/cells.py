"""What an evaluation measures: one cell is one system under one attack at one epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from comdefend_cli.evaluate.stats import compute_percentages

CLEAN, GRAY_BOX, ADAPTIVE, BLACK_BOX = THREATS = ("clean", "grey-box", "adaptive", "black-box")


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        classifier, defence: the system.
        threat: one of `THREATS`.
        attack: its name, "" for clean images.
        title: the attack's name for people.
        gradient: what the attacker used in place of the purifier's gradient, or "".
        epsilon: most L-infinity distance in 8-bit levels; None for clean images.
        outcomes: whether each image was classified right, in the order of the images.
        seconds: that it took, the attack included where it was made for this cell.
        settings: of the attack, and how the images were rounded.
        mean_linf: mean over images of the L-infinity distance to the clean ones, in 8-bit levels.
        mean_l2: mean over images of the Euclidean distance, pixels in [0, 1].
    """

    classifier: str
    defence: str
    threat: str
    attack: str
    title: str
    gradient: str
    epsilon: float | None
    outcomes: tuple[bool, ...]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    mean_linf: float = 0.0
    mean_l2: float = 0.0

    @property
    def n(self) -> int:
        """Images."""
        return len(self.outcomes)

    @property
    def correct(self) -> int:
        """Images classified right."""
        return sum(self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json: accuracy and its 95 % interval in percent, outcomes as a string of 0 and 1."""
        fields = asdict(self)
        fields["outcomes"] = "".join("01"[right] for right in self.outcomes)
        for name in ("attack", "gradient"):
            fields[name] = fields[name] or None
        return {**fields, **count_right(self.outcomes)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Cell:
        """The reverse of :meth:`to_json`; fields that follow from the outcomes are not looked at.

        Raises:
            ValueError: a field is missing or is not what it should be.
        """
        own: dict[str, Any] = {}
        for name, fits in _FIELDS.items():
            if name not in fields or not fits(fields[name]):
                raise ValueError(f"{name} is {'not what it should be' if name in fields else 'missing'}")
            own[name] = fields[name]
        own["outcomes"] = tuple(character == "1" for character in fields["outcomes"])
        own["attack"], own["gradient"] = fields["attack"] or "", fields["gradient"] or ""
        return Cell(**own)


def say_epsilon(levels: float) -> str:
    """An L-infinity distance in 8-bit levels as attacks are written of, for pixels in [0, 1]: "8/255"."""
    return f"{levels:g}/255"


def is_share(value: object) -> TypeGuard[float]:
    """Whether a value from a file is a number from 0 to 1."""
    return _is_number(value) and value <= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


#: What each field of a cell may be in JSON.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("classifier", "defence", "title"), _is_text),
    "threat": lambda value: value in THREATS,
    **dict.fromkeys(("attack", "gradient"), lambda value: value is None or _is_text(value)),
    "epsilon": lambda value: value is None or _is_number(value),
    "outcomes": lambda value: _is_text(value) and bool(value) and set(value) <= {"0", "1"},
    **dict.fromkeys(("seconds", "mean_linf", "mean_l2"), _is_number),
    "settings": lambda value: isinstance(value, dict),
}


@dataclass(frozen=True)
class GradientCheck:
    """How often a system's gradient is missing.

    Attributes:
        classifier, defence, gradient: the system, and what stands for the purifier's gradient.
        zero_share: of the images, from 0 to 1, the gradient is zero or not finite.
        n: images.
    """

    classifier: str
    defence: str
    gradient: str
    zero_share: float
    n: int


def count_right(outcomes: Sequence[bool]) -> dict[str, float]:
    """`n`, `correct`, and in percent `accuracy` with `low` and `high`."""
    return {"n": len(outcomes), "correct": sum(outcomes), **compute_percentages(sum(outcomes), len(outcomes))}


def intersect_outcomes(cells: Sequence[Cell]) -> tuple[bool, ...]:
    """Which images all of some measurements found classified right, of those that all of them have: the first ones."""
    return tuple(map(all, zip(*(cell.outcomes for cell in cells), strict=False)))


def compute_headlines(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """A system's robust accuracy for each threat model and epsilon, as RobustBench counts it (Croce et al., NeurIPS 2021, section 2).

    An image counts as held only if it is classified right as it is, and every attack failed on it, through whichever gradient.
    Attacks that met different numbers of images are compared on the first ones, which all of them met.

    Returns:
        Entries of results.json: `n` images, `correct` of them held, `accuracy`, `low` and `high`; `attack`, `title` and `gradient`
        of the measurement that alone found the fewest of these images right; `attacks` that count; `n_most`, the most images of one;
        `outcomes` as of a cell.
    """
    by_system: dict[tuple[str, str, str, float | None], list[Cell]] = {}
    for cell in cells:
        by_system.setdefault((cell.classifier, cell.defence, cell.threat, cell.epsilon), []).append(cell)
    return [_headline(own, by_system.get((*key[:2], CLEAN, None), [])) for key, own in by_system.items()]


def _headline(own: list[Cell], clean: list[Cell]) -> dict[str, Any]:
    outcomes = intersect_outcomes([*own, *clean])
    worst = min(own, key=lambda cell: sum(cell.outcomes[: len(outcomes)]))
    return {
        **{name: getattr(worst, name) for name in ("classifier", "defence", "threat", "epsilon", "title")},
        **{name: getattr(worst, name) or None for name in ("attack", "gradient")},
        "attacks": list(dict.fromkeys(cell.attack for cell in own if cell.attack)),
        "n_most": max(cell.n for cell in own),
        "outcomes": "".join("01"[right] for right in outcomes),
        **count_right(outcomes),
    }
