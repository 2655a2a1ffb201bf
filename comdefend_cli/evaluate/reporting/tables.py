"""What `results.json` says, to look up by system, threat model, attack and epsilon: the one source of every table and chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.recipes import RECIPES, RENAMED
from comdefend_cli.evaluate.cells import Cell, compute_headlines, count_right, intersect_outcomes

FORMAT = 1
#: In the order in which they are shown; "clean" is no threat.
THREATS = ("grey-box", "adaptive", "black-box")
#: The name of the defence that is none.
UNDEFENDED = "none"
NO_BREAK = "\N{NO-BREAK SPACE}"
NOT_MEASURED = "not measured"
#: With no defence to know, an adaptive attacker knows what a grey-box one does.
AS_GRAY_BOX = "as grey-box"
#: Images below which an interval is so wide, over 15 points around one half, that a reader is warned.
FEW = 100
#: More systems than this are drawn a chart a classifier, not all in one.
MOST_IN_A_CHART = 14


def make_printable(text: object) -> str:
    """One line of printable text: control characters, that could not stand in XML or would steer a terminal, replaced."""
    return "".join(
        character if character.isprintable() or character == NO_BREAK else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )


def say_number(value: float) -> str:
    """A number as briefly as it can be said: "8", "0.5"."""
    return f"{value:g}"


@dataclass(frozen=True)
class System:
    """A classifier with a defence in front."""

    classifier: str
    defence: str


@dataclass(frozen=True)
class Measured:
    """An accuracy with its interval; `str` gives "24.6 (21.0-28.6)".

    Attributes:
        threat: "clean", "grey-box", "adaptive" or "black-box".
        title: the attack as people write it; "" for clean.
        gradient: what the attacker used for the defence's gradient; "" where there was no choice.
        epsilon: L-infinity in 8-bit levels; None for clean.
        n: images.
        accuracy: percent of them classified correctly.
        low, high: 95 % Wilson interval in percent.
        record: the entry of the results that this is.
    """

    system: System
    threat: str
    title: str
    gradient: str
    epsilon: float | None
    n: int
    accuracy: float
    low: float
    high: float
    record: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} ({self.low:.1f}-{self.high:.1f})"

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """Whether each image was classified right, in the order of the images."""
        return tuple(character == "1" for character in self.record["outcomes"])

    @property
    def attack(self) -> str:
        """The attack with its gradient: "PGD, identity"."""
        return f"{self.title}, {self.gradient}" if self.gradient else self.title


def _measured(record: Mapping[str, Any], titles: Mapping[str, str]) -> Measured:
    attack, epsilon = record.get("attack") or "", record.get("epsilon")
    title = RECIPES[RENAMED[attack]].title if attack in RENAMED else titles.get(attack, attack)
    system = System(make_printable(record["classifier"]), make_printable(record["defence"]))
    gradient = "" if system.defence == UNDEFENDED else record.get("gradient") or ""  # Nothing to differentiate in more than one way.
    return Measured(
        system,
        make_printable(record["threat"]),
        make_printable(title),  # Clean cells may have a title without being an attack.
        make_printable(gradient),
        None if epsilon is None else float(epsilon),
        int(record["n"]),
        float(record["accuracy"]),
        float(record["low"]),
        float(record["high"]),
        record,
    )


def _read_cell(record: Mapping[str, Any]) -> Cell:
    try:
        return Cell.from_json(record)
    except ValueError as error:
        raise UsageError(f"the results have a damaged measurement: {error}; evaluate again") from error


class Tables:
    """The measurements of a results dict.

    Args:
        results: the contents of `results.json`.

    Attributes:
        results: the same.
        cells: every measurement, in order.
        headlines: what holds against all attacks of a threat model together, in order, by :func:`compute_headlines` of the outcomes.
        systems: every system, in the order of the results.

    Raises:
        UsageError: a format that this release does not read, or a damaged measurement.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        if results.get("format_version") != FORMAT:
            raise UsageError(f"results of format {results.get('format_version')}: this release reads format {FORMAT}; evaluate again")
        self.results = results
        titles = {cell["attack"]: cell["title"] for cell in results["cells"] if cell.get("attack") and cell.get("title")}
        self.cells = [_measured(record, titles) for record in results["cells"]]
        named = [System(make_printable(entry["classifier"]), make_printable(entry["defence"])) for entry in results["systems"]]
        self.systems = _unique([*named, *(cell.system for cell in self.cells)])
        # Not those of the file: earlier releases wrote the lowest mean over attacks there.
        together = [_measured(record, titles) for record in compute_headlines(map(_read_cell, results["cells"]))]
        self.headlines = [each for each in together if each.threat in THREATS]
        self._headlines = {(each.system, each.threat, each.epsilon): each for each in self.headlines}

    @cached_property
    def classifiers(self) -> list[str]:
        """The classifiers, in the order of the systems."""
        return _unique(system.classifier for system in self.systems)

    @cached_property
    def epsilons(self) -> list[float]:
        """Every strength measured, ascending, in 8-bit levels."""
        everything = [*self.cells, *self.headlines]
        return sorted({each.epsilon for each in everything if each.epsilon is not None})

    def list_threats(self) -> list[str]:
        """The threat models that were measured for any system."""
        known = {each.threat for each in [*self.cells, *self.headlines]}
        return [threat for threat in THREATS if threat in known]

    def is_measured(self, threat: str, epsilon: float) -> bool:
        """Whether any system was measured under a threat model at an epsilon."""
        return any((each.threat, each.epsilon) == (threat, epsilon) for each in self.headlines)

    def list_few(self) -> list[str]:
        """What was measured on fewer than `FEW` images, with their number: "adaptive: 50"."""
        counts = {"clean": self.count_clean(), **{threat: self.count_under(threat) for threat in self.list_threats()}}
        return [f"{name}: {sizes[0]}" for name, sizes in counts.items() if sizes and sizes[0] < FEW]

    def list_systems(self, classifier: str) -> list[System]:
        """Its systems, in order."""
        return [system for system in self.systems if system.classifier == classifier]

    def find_clean(self, system: System) -> Measured | None:
        """Accuracy on clean images, or None where that was not measured."""
        return next(iter(self._places.get((system, "clean", "", None), [])), None)

    def find_headline(self, system: System, threat: str, epsilon: float) -> Measured | None:
        """What holds against all attacks of a threat model together, or None where none was measured."""
        return self._headlines.get((system, threat, epsilon))

    def say_missing(self, system: System, threat: str, epsilon: float) -> str:
        """What to say in place of a headline that is not there."""
        alike = system.defence == UNDEFENDED and threat == "adaptive" and self.find_headline(system, "grey-box", epsilon)
        return AS_GRAY_BOX if alike else NOT_MEASURED

    def find_undefended(self, system: System, threat: str, epsilon: float) -> Measured | None:
        """The headline of the same classifier without a defence, by the attacks that there are on it."""
        bare = System(system.classifier, UNDEFENDED)
        found = self.find_headline(bare, threat, epsilon)
        return self.find_headline(bare, "grey-box", epsilon) if found is None and threat == "adaptive" else found

    def list_attacks(self, threat: str) -> list[str]:
        """Titles of the attacks run under a threat model; variants of one attack share a title."""
        return _unique(cell.title for cell in self.cells if cell.threat == threat and cell.title)

    @cached_property
    def alarmed(self) -> set[System]:
        """Systems that an alarm rang for."""
        return {System(make_printable(alarm["classifier"]), make_printable(alarm["defence"])) for alarm in self.results.get("alarms", [])}

    def count_clean(self) -> list[int]:
        """The numbers of clean images."""
        return count_sizes(map(self.find_clean, self.systems))

    def count_headline(self, threat: str, epsilon: float) -> list[int]:
        """The numbers of images behind the headlines of a threat model at an epsilon."""
        return count_sizes(self.find_headline(system, threat, epsilon) for system in self.systems)

    def count_under(self, threat: str) -> list[int]:
        """The numbers of images that attacks of a threat model met."""
        return count_sizes(cell for cell in self.cells if cell.threat == threat)

    def list_epsilons(self, threat: str) -> list[float]:
        """Every strength measured under a threat model, ascending."""
        return sorted({cell.epsilon for cell in self.cells if cell.threat == threat and cell.epsilon})

    def find(self, system: System, threat: str, title: str, epsilon: float) -> list[Measured]:
        """The measurements of one place in a table, worst first: none, one, or several that differ in gradient or settings."""
        return self._places.get((system, threat, title, epsilon), [])

    @cached_property
    def _places(self) -> dict[tuple[System, str, str, float | None], list[Measured]]:
        places: dict[tuple[System, str, str, float | None], list[Measured]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.accuracy):
            places.setdefault((cell.system, cell.threat, cell.title, cell.epsilon), []).append(cell)
        return places

    def find_lowest(self, system: System, threat: str, epsilon: float) -> float:
        """The lowest accuracy of a single measurement under a threat model, in percent."""
        own = ((cell.system, cell.threat, cell.epsilon, cell.accuracy) for cell in self.cells)
        return min((accuracy for *where, accuracy in own if where == [system, threat, epsilon]), default=0.0)

    def find_under(self, system: System, threat: str, title: str, epsilon: float) -> Measured | None:
        """What holds against an attack, through all gradients; without a defence, the grey-box one where the adaptive is missing."""
        found = self.find(system, threat, title, epsilon)
        if not found and threat == "adaptive" and system.defence == UNDEFENDED:
            return self.find_under(system, "grey-box", title, epsilon)
        if len(found) < 2:
            return found[0] if found else None
        counted = count_right(intersect_outcomes([_read_cell(each.record) for each in found]))
        return _measured({**found[0].record, **counted}, {found[0].record["attack"]: title})

    def say_uneven(self) -> str:
        """A sentence where attacks of one headline met different numbers of images, else ""."""
        mixed = [each for each in self.headlines if each.record["n_most"] > each.n]
        if not mixed:
            return ""
        n = ", ".join(sorted({f"{each.n} of {each.record['n_most']} ({each.threat})" for each in mixed}))
        return f"Where attacks met different numbers of images, the headline is of those that all of them met: {n}."

    def name_system(self, system: System) -> str:
        """The system's name in charts and sentences, with its classifier where there are several."""
        if len(self.classifiers) == 1:
            return system.defence
        return f"{system.classifier} alone" if system.defence == UNDEFENDED else f"{system.classifier} + {system.defence}"

    def group_systems(self) -> dict[str, list[System]]:
        """The systems that share a chart, by the name of their group: all as "", or when they are many, a group a classifier."""
        if len(self.classifiers) == 1 or len(self.systems) <= MOST_IN_A_CHART:
            return {"": self.systems}
        return {classifier: self.list_systems(classifier) for classifier in self.classifiers}


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def count_sizes(measured: Iterable[Measured | None]) -> list[int]:
    """The different numbers of images behind these, ascending."""
    return sorted({each.n for each in measured if each is not None})


def say_sizes(numbers: Sequence[int]) -> str:
    """One sentence on how many images stand behind the numbers of a table."""
    if not numbers:
        return "Nothing was measured."
    if len(numbers) == 1:
        return f"n = {numbers[0]} images behind every number."
    return "The number of images n differs and stands with every number."
