"""The gradient-masking alarm: it rings where it must, and not where it must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comdefend_cli.evaluate.cells import Cell, GradientCheck, compute_headlines
from comdefend_cli.evaluate.masking import find_alarms


def cell(threat: str, attack: str, epsilon: float, right: int, n: int = 50, **more: Any) -> Cell:
    """A cell in which the first `right` of n images are right."""
    outcomes = tuple(i < right for i in range(n))
    fields = {"classifier": "c", "defence": "d", "gradient": "identity" if threat == "adaptive" else "", **more}
    return Cell(threat=threat, attack=attack, title=attack.upper(), epsilon=epsilon, outcomes=outcomes, seconds=1.0, **fields)


def kinds(cells: list[Cell], checks: list[GradientCheck] | None = None) -> list[str]:
    return [alarm.kind for alarm in find_alarms(cells, checks or [])]


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
    found = find_alarms(HEALTHY, checks[:1])
    assert [alarm.kind for alarm in found] == ["zero-gradient"] and "100% of 50" in found[0].message


def test_grey_box_cells_ring_nothing() -> None:
    """An attacker without the purifier has no gradient of it that could be masked."""
    assert kinds([cell("grey-box", "fgsm", 8, 20), cell("grey-box", "pgd", 8, 40)]) == []


def outcomes(threat: str, attack: str, epsilon: float | None, bits: str, **more: Any) -> Cell:
    """A cell with these outcomes."""
    return replace(cell(threat, attack, 8, 1, n=1, **more), epsilon=epsilon, outcomes=tuple(bit == "1" for bit in bits))


def test_headlines_count_images_that_every_attack_failed_on() -> None:
    """Attacks that each break another half leave nothing; of different n the first images count; threats and epsilons stay apart."""
    cells = [
        outcomes("adaptive", "fgsm", 8, "11110000"),
        outcomes("adaptive", "pgd", 8, "00001111", gradient="soft"),
        outcomes("adaptive", "pgd", 2, "1111"),
        outcomes("adaptive", "pgd", 2, "01101111", gradient="soft"),
        outcomes("grey-box", "bim", 8, "11111111"),
    ]
    found = {(line["threat"], line["epsilon"]): line for line in compute_headlines(cells)}
    assert list(found) == [("adaptive", 8), ("adaptive", 2), ("grey-box", 8)]
    assert (found["adaptive", 8]["correct"], found["adaptive", 8]["n"], found["adaptive", 8]["accuracy"]) == (0, 8, 0.0)
    assert found["adaptive", 8]["attacks"] == ["fgsm", "pgd"]
    few = found["adaptive", 2]
    assert (few["correct"], few["n"], few["n_most"], few["accuracy"]) == (2, 4, 8, 50.0)
    assert (few["attack"], few["gradient"]) == ("pgd", "soft"), "the one that alone breaks most of the images that both met"
    assert found["grey-box", 8]["correct"] == 8


def test_an_image_that_is_wrong_without_an_attack_is_not_held() -> None:
    """As RobustBench counts: an attack that makes a wrong answer right does not add to the robust accuracy."""
    cells = [outcomes("clean", "", None, "0111"), outcomes("grey-box", "bim", 8, "1100"), outcomes("clean", "", None, "1111", defence="e")]
    found = {(line["defence"], line["threat"]): line["correct"] for line in compute_headlines(cells)}
    assert found == {("d", "clean"): 3, ("d", "grey-box"): 1, ("e", "clean"): 4}


@pytest.mark.parametrize("original", [HEALTHY[0], cell("clean", "", None, 7)])  # type: ignore[arg-type]
def test_cells_come_back_from_json(original: Cell) -> None:
    """What results.json and the cache hold is the cell."""
    assert Cell.from_json(original.to_json()) == original


@pytest.mark.parametrize("name", ["outcomes", "seconds", "title", "epsilon", "settings", "mean_l2"])
@pytest.mark.parametrize("value", ["absent", [], "x", True])
def test_damaged_cells_are_refused(name: str, value: Any) -> None:
    """A field that is missing or of another kind is a ValueError that names it."""
    if (name, value) == ("title", "x"):
        return
    fields = {**HEALTHY[0].to_json(), name: value}
    if value == "absent":
        del fields[name]
    with pytest.raises(ValueError, match=f"{name} is"):
        Cell.from_json(fields)
