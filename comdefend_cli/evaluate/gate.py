"""`evaluate --fail-under`: accuracies that every defence must reach, so that an evaluation can end a build."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.cells import CLEAN, THREATS, say_epsilon
from comdefend_cli.evaluate.protocol import Protocol

_FORM = re.compile(r"(?P<threat>[a-z-]+)(?::(?P<epsilon>\d+(?:\.\d*)?)(?:/255)?)?=(?P<least>\d+(?:\.\d*)?)")
CERTIFIED = "certified"


@dataclass(frozen=True)
class Floor:
    """The least accuracy of a threat model.

    Attributes:
        threat: one of `THREATS`, or `CERTIFIED`.
        epsilon: in 8-bit levels, of certificates the L2 radius for pixels in [0, 1]; None for clean images.
        least: in percent.
    """

    threat: str
    epsilon: float | None
    least: float

    @property
    def said(self) -> str:
        """As people read it: "grey-box at 8/255"."""
        if self.threat == CERTIFIED:
            return f"certified at L2 radius {self.epsilon:g}"
        return self.threat if self.epsilon is None else f"{self.threat} at {say_epsilon(self.epsilon)}"


def parse_floors(text: str) -> list[Floor]:
    """The floors of "clean=80,grey-box:8=40,adaptive:2/255=20".

    Raises:
        UsageError: it is none.
    """
    floors = []
    for part in text.split(","):
        found = _FORM.fullmatch(part.strip())
        if found is None or found["threat"] not in (*THREATS, CERTIFIED) or (found["threat"] == CLEAN) != (found["epsilon"] is None):
            raise UsageError(f"--fail-under takes clean=80,grey-box:8=40,adaptive:2=20 and the like, not {part.strip()!r}")
        if not 0 <= float(found["least"]) <= 100:
            raise UsageError(f"--fail-under {part.strip()}: an accuracy is from 0 to 100 percent")
        floors.append(Floor(found["threat"], None if found["epsilon"] is None else float(found["epsilon"]), float(found["least"])))
    return floors


def refuse_unmeasured(floors: Sequence[Floor], protocol: Protocol, defences: str, *, certified: bool = False) -> None:
    """Raise :class:`UsageError` for a floor of what an evaluation does not measure: it could not be missed.

    Args:
        floors: what must be reached.
        protocol: of the evaluation.
        defences: its specs, separated by spaces or semicolons; "none" is no defence.
        certified: whether there are certificates.
    """
    if floors and not {*defences.replace(";", " ").split()} - {"none"}:
        raise UsageError("--fail-under holds defences to it, and --defences names none; add one")
    for floor in floors:
        if floor.threat == CERTIFIED:
            if not certified:
                raise UsageError("--fail-under: nothing is certified; name what comdefend certify wrote with --certificates")
        elif floor.threat != CLEAN and (floor.threat not in protocol.threats or floor.epsilon not in protocol.epsilons):
            raise UsageError(f"--fail-under: {floor.said} is not measured; add it to --threat-models and --epsilons")


def find_misses(floors: Sequence[Floor], results: Mapping[str, Any]) -> list[str]:
    """A line a defence and floor that it misses; "none" is no defence, and has to reach nothing.

    Args:
        floors: what must be reached.
        results: of an evaluation, as results.json has them; accuracy is that of images held against every attack of the threat model.
    """
    misses = []
    for floor in floors:
        if floor.threat == CERTIFIED:
            misses += _find_uncertified(floor, results["certificates"])
            continue
        own = [each for each in results["headlines"] if (each["threat"], each["epsilon"]) == (floor.threat, floor.epsilon)]
        for each in own:
            if each["defence"] != "none" and each["accuracy"] < floor.least:
                system = f"{each['classifier']} behind {each['defence']}"
                misses.append(f"{system}: {floor.said} is {each['accuracy']:.1f} %, below {floor.least:g} % (n = {each['n']})")
        seen = {(each["classifier"], each["defence"]) for each in own}
        for system in results["systems"]:
            name = (system["classifier"], system["defence"])
            if name not in seen and system["defence"] != "none":
                misses.append(f"{name[0]} behind {name[1]}: {floor.said} was not measured")
    return misses


def _find_uncertified(floor: Floor, certificates: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of several certificates that has less at that radius, or was not looked at there."""
    misses = []
    for entry in certificates:
        system = f"{entry['classifier']} smoothed behind {entry['defence']}"
        found = [row["accuracy"] for row in entry["certified"] if math.isclose(row["radius"], floor.epsilon or 0.0, abs_tol=5e-4)]
        if not found:
            misses.append(f"{system}: {floor.said} was not measured")
        elif found[0] < floor.least:
            misses.append(f"{system}: {floor.said} is {found[0]:.1f} %, below {floor.least:g} % (n = {entry['images']:g})")
    return misses
