"""What an evaluation measures: one cell is one system under one attack at one epsilon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from comdefend_cli.evaluate.stats import percentages

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
        return {**fields, "n": self.n, "correct": self.correct, **percentages(self.correct, self.n)}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Cell:
        """The reverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError: a field is missing.
        """
        own = {name: fields[name] for name in Cell.__dataclass_fields__}
        own["outcomes"] = tuple(character == "1" for character in fields["outcomes"])
        own["attack"], own["gradient"] = fields["attack"] or "", fields["gradient"] or ""
        return Cell(**own)


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


def headlines(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """A system's figure for a threat model and epsilon: the lowest accuracy over all its attacks and gradients."""
    lowest: dict[tuple[str, str, str, float | None], Cell] = {}
    for cell in cells:
        key = (cell.classifier, cell.defence, cell.threat, cell.epsilon)
        if key not in lowest or cell.correct * lowest[key].n < lowest[key].correct * cell.n:
            lowest[key] = cell
    kept = ("classifier", "defence", "threat", "epsilon", "attack", "title", "gradient", "n", "correct", "accuracy", "low", "high")
    return [{name: cell.to_json()[name] for name in kept} for cell in lowest.values()]
