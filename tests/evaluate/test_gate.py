"""`evaluate --fail-under`: what is read, refused and missed."""

from __future__ import annotations

import pytest

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.gate import Floor, find_misses, parse_floors, refuse_unmeasured
from comdefend_cli.evaluate.protocol import Protocol


def headline(defence: str, threat: str, epsilon: float | None, accuracy: float) -> dict[str, object]:
    return {"classifier": "c", "defence": defence, "threat": threat, "epsilon": epsilon, "accuracy": accuracy, "n": 50}


RESULTS = {
    "systems": [{"classifier": "c", "defence": defence} for defence in ("none", "good", "bad")],
    "headlines": [
        *(headline(defence, "clean", None, 80.0) for defence in ("none", "good", "bad")),
        headline("none", "grey-box", 8.0, 0.0),
        headline("good", "grey-box", 8.0, 40.0),
        headline("bad", "grey-box", 8.0, 39.9),
    ],
}


def test_floors_are_read() -> None:
    """Epsilons as 8 and as 8/255; clean without one."""
    wanted = [Floor("clean", None, 80.0), Floor("grey-box", 8.0, 40.0), Floor("adaptive", 2.0, 20.5)]
    assert parse_floors("clean=80, grey-box:8=40,adaptive:2/255=20.5") == wanted
    for wrong in ("", "grey-box=40", "clean:8=40", "white-box:8=40", "grey-box:8", "grey-box:8=101", "grey-box:x=4"):
        with pytest.raises(UsageError, match="--fail-under"):
            parse_floors(wrong)


def test_misses_are_named() -> None:
    """Below is a miss, equal is none; no defence has to reach nothing; what was not measured is a miss, not a pass."""
    assert find_misses(parse_floors("clean=80"), RESULTS) == []
    assert find_misses(parse_floors("grey-box:8=40"), RESULTS) == ["c behind bad: grey-box at 8/255 is 39.9 %, below 40 % (n = 50)"]
    assert len(find_misses(parse_floors("adaptive:8=0"), RESULTS)) == 2
    protocol = Protocol(threats=("grey-box",), epsilons=(2.0, 8.0))
    refuse_unmeasured(parse_floors("clean=1,grey-box:8=1"), protocol, "none bits")
    with pytest.raises(UsageError, match="names none"):
        refuse_unmeasured(parse_floors("clean=1"), protocol, "none")
    for floors in ("grey-box:4=1", "adaptive:8=1"):
        with pytest.raises(UsageError, match="is not measured"):
            refuse_unmeasured(parse_floors(floors), protocol, "bits")


def test_certificates_have_floors_too() -> None:
    """By the L2 radius; a radius that was not looked at is a miss; without certificates there is nothing to ask."""
    rows = [{"name": "0.25", "radius": 0.25, "accuracy": 51.0}, {"name": "0.435 (L-infinity 2/255)", "radius": 0.4347, "accuracy": 30.0}]
    results = {**RESULTS, "certificates": [{"classifier": "c", "defence": "good", "images": 100, "certified": rows}]}
    assert find_misses(parse_floors("certified:0.25=51,certified:0.435=30"), results) == []
    missed = find_misses(parse_floors("certified:0.25=52,certified:1=1"), results)
    assert (
        missed[0] == "c smoothed behind good: certified at L2 radius 0.25 is 51.0 %, below 52 % (n = 100)" and "not measured" in missed[1]
    )
    refuse_unmeasured(parse_floors("certified:0.25=1"), Protocol(), "bits", certified=True)
    with pytest.raises(UsageError, match="nothing is certified"):
        refuse_unmeasured(parse_floors("certified:0.25=1"), Protocol(), "bits")
