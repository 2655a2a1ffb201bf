"""The gradient-masking alarm: it rings where it must, and not where it must not."""

from __future__ import annotations

from typing import Any

import pytest

from comdefend_cli.evaluate.cells import Cell, GradientCheck, headlines
from comdefend_cli.evaluate.masking import alarms


def cell(threat: str, attack: str, epsilon: float, right: int, n: int = 50, **more: Any) -> Cell:
    """A cell in which the first `right` of n images are right."""
    outcomes = tuple(i < right for i in range(n))
    fields = {"classifier": "c", "defence": "d", "gradient": "identity" if threat == "adaptive" else "", **more}
    return Cell(threat=threat, attack=attack, title=attack.upper(), epsilon=epsilon, outcomes=outcomes, seconds=1.0, **fields)


def kinds(cells: list[Cell], checks: list[GradientCheck] | None = None) -> list[str]:
    return [alarm.kind for alarm in alarms(cells, checks or [])]


HEALTHY = [cell("adaptive", "fgsm", 2, 30), cell("adaptive", "pgd", 2, 20), cell("adaptive", "fgsm", 8, 12), cell("adaptive", "pgd", 8, 2)]


def test_a_healthy_defence_is_quiet() -> None:
    """Accuracy that falls with steps and epsilon, and stands longer against queries, rings nothing."""
    assert kinds([*HEALTHY, cell("black-box", "square", 8, 9, n=20)], [GradientCheck("c", "d", "identity", 0.02, 50)]) == []


def test_a_robust_defence_is_quiet() -> None:
    """One that many steps lower only a little more than one, as adversarial training is."""
    robust = [
        cell("adaptive", "fgsm", 8, 30),
        cell("adaptive", "pgd", 8, 28),
        cell("adaptive", "fgsm", 16, 20),
        cell("adaptive", "pgd", 16, 12),
    ]
    assert kinds(robust) == []


def test_queries_that_beat_gradients() -> None:
    """Images that Square alone breaks ring the alarm; on the same images only."""
    white = cell("adaptive", "pgd", 8, 10)
    assert kinds([white, cell("black-box", "square", 8, 6, n=20)]) == ["black-box-beats-white-box"]
    assert kinds([white, cell("black-box", "square", 8, 9, n=20)]) == []  # A single image may be luck.
    assert kinds([white, cell("black-box", "square", 2, 6, n=20)]) == []  # Another epsilon.


def test_steps_that_gain_nothing() -> None:
    """PGD that leaves more than FGSM, or as much at the largest epsilon."""
    assert kinds([cell("adaptive", "fgsm", 8, 20), cell("adaptive", "pgd", 8, 25)]) == ["more-steps-do-not-hurt"]
    assert kinds([cell("adaptive", "fgsm", 8, 20), cell("adaptive", "pgd", 8, 20)]) == ["more-steps-do-not-hurt"]
    assert kinds([cell("adaptive", "fgsm", 8, 5), cell("adaptive", "pgd", 8, 5)]) == []  # Little is left to lower.


def test_epsilon_that_gains_nothing() -> None:
    """PGD that leaves as much at a larger epsilon."""
    assert kinds([cell("adaptive", "pgd", 2, 30), cell("adaptive", "pgd", 8, 30)]) == ["larger-epsilon-does-not-hurt"]


def test_the_best_gradient_counts() -> None:
    """One masked gradient among others is no alarm; a defence whose every gradient is zero is."""
    checks = [GradientCheck("c", "d", "soft", 1.0, 50), GradientCheck("c", "d", "identity", 0.0, 50)]
    assert kinds(HEALTHY, checks) == []
    found = alarms(HEALTHY, checks[:1])
    assert [alarm.kind for alarm in found] == ["zero-gradient"] and "100% of 50" in found[0].message


def test_grey_box_cells_ring_nothing() -> None:
    """An attacker without the purifier has no gradient of it that could be masked."""
    assert kinds([cell("grey-box", "fgsm", 8, 20), cell("grey-box", "pgd", 8, 40)]) == []


def test_headlines_are_the_minimum() -> None:
    """A system's figure is its lowest over attacks and gradients, by share where n differs, apart by threat and epsilon."""
    cells = [cell("adaptive", "pgd", 8, 20), cell("adaptive", "autoattack", 8, 3, n=10), cell("grey-box", "bim", 8, 40)]
    found = {(line["threat"], line["attack"], line["accuracy"]) for line in headlines(cells)}
    assert found == {("adaptive", "autoattack", 30.0), ("grey-box", "bim", 80.0)}


@pytest.mark.parametrize("original", [HEALTHY[0], cell("clean", "", None, 7)])  # type: ignore[arg-type]
def test_cells_come_back_from_json(original: Cell) -> None:
    """What results.json and the cache hold is the cell."""
    assert Cell.from_json(original.to_json()) == original
