"""Signs of gradient masking (Athalye et al., ICML 2018, section 3.1): when an attack's failure proves nothing.

A defence that hides its gradient looks strong to attacks that follow gradients, and is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from comdefend_cli.evaluate.cells import Cell, GradientCheck, say_epsilon

#: Share of images by which one cell must differ from another, and the least number of them, before it is a sign.
MARGIN_SHARE, MARGIN_LEAST = 0.05, 2
#: Accuracy from which an attack without effect is a sign; below, there is little left to lower.
STANDING = 0.2
#: Share of images without any gradient from which it is a sign.
ZERO_SHARE = 0.1


@dataclass(frozen=True)
class Alarm:
    """A sign of gradient masking in one system.

    Attributes:
        classifier, defence: the system.
        kind: "black-box-beats-white-box", "more-steps-do-not-hurt", "larger-epsilon-does-not-hurt" or "zero-gradient".
        message: one sentence with the numbers.
    """

    classifier: str
    defence: str
    kind: str
    message: str


def find_alarms(cells: Iterable[Cell], checks: Iterable[GradientCheck]) -> list[Alarm]:
    """All signs in the adaptive and black-box cells of an evaluation.

    Args:
        cells: those of one evaluation; other threat models are left out of account.
        checks: share of images without a gradient, by system and kind of gradient.
    """
    found: list[Alarm] = []
    by_system: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_system.setdefault((cell.classifier, cell.defence), []).append(cell)
    for (classifier, defence), own in by_system.items():
        adaptive = [cell for cell in own if cell.threat == "adaptive"]
        black = [cell for cell in own if cell.threat == "black-box"]
        messages = [*_find_black_beats_white(adaptive, black), *_find_useless_steps(adaptive), *_find_useless_epsilons(adaptive)]
        found += [Alarm(classifier, defence, kind, message) for kind, message in messages]
    return found + _find_zero_gradients(checks)


def _margin(n: int) -> int:
    return max(MARGIN_LEAST, ceil(MARGIN_SHARE * n))


def _epsilons_of(cells: list[Cell]) -> list[float]:
    return sorted({cell.epsilon for cell in cells if cell.epsilon is not None})


def _find_black_beats_white(adaptive: list[Cell], black: list[Cell]) -> list[tuple[str, str]]:
    """Images that queries alone break while every attack with gradients fails on them."""
    found = []
    for cell in black:
        if cell.epsilon is None:
            continue
        white = [other for other in adaptive if other.epsilon == cell.epsilon]
        n = min([cell.n, *(other.n for other in white)])
        if not white:
            continue
        only = sum(not cell.outcomes[i] and all(other.outcomes[i] for other in white) for i in range(n))
        if only >= _margin(n):
            text = f"at {say_epsilon(cell.epsilon)} {cell.title} breaks {only} of {n} images that no attack with gradients breaks"
            found.append(("black-box-beats-white-box", text))
    return found


def _fewest_right(cells: list[Cell], attack: str, epsilon: float) -> tuple[int, int] | None:
    """Fewest right answers under one attack over all gradients, and n."""
    chosen = [(cell.correct, cell.n) for cell in cells if cell.attack == attack and cell.epsilon == epsilon]
    return min(chosen) if chosen else None


def _find_useless_steps(adaptive: list[Cell]) -> list[tuple[str, str]]:
    """Many steps that do worse than one, or at the largest epsilon no better."""
    found, sizes = [], _epsilons_of(adaptive)
    for epsilon in sizes:
        one, many = (_fewest_right(adaptive, attack, epsilon) for attack in ("fgsm", "pgd"))
        if one is None or many is None or one[1] != many[1]:
            continue
        n = one[1]
        stuck = epsilon == sizes[-1] and many[0] >= one[0] and many[0] > STANDING * n
        if stuck or many[0] - one[0] >= _margin(n):
            text = f"at {say_epsilon(epsilon)} PGD leaves {many[0]} of {n} images right, and FGSM in a single step {one[0]}"
            found.append(("more-steps-do-not-hurt", text))
    return found


def _find_useless_epsilons(adaptive: list[Cell]) -> list[tuple[str, str]]:
    """A larger epsilon that leaves more right than a smaller one, or as many where much is left."""
    found, sizes = [], _epsilons_of(adaptive)
    for small, large in itertools.pairwise(sizes):
        before, after = (_fewest_right(adaptive, "pgd", epsilon) for epsilon in (small, large))
        if before is None or after is None or before[1] != after[1]:
            continue
        n = before[1]
        stuck = large >= 2 * small and after[0] >= before[0] and after[0] > STANDING * n
        if stuck or after[0] - before[0] >= _margin(n):
            text = f"PGD leaves {after[0]} of {n} images right at {say_epsilon(large)}, and {before[0]} at {say_epsilon(small)}"
            found.append(("larger-epsilon-does-not-hurt", text))
    return found


def _find_zero_gradients(checks: Iterable[GradientCheck]) -> list[Alarm]:
    """Systems whose best gradient is still missing for many images."""
    best: dict[tuple[str, str], GradientCheck] = {}
    for check in checks:
        key = (check.classifier, check.defence)
        if key not in best or check.zero_share < best[key].zero_share:
            best[key] = check
    return [
        Alarm(
            check.classifier,
            check.defence,
            "zero-gradient",
            f"the {check.gradient} gradient, the best of those tried, is zero on {check.zero_share:.0%} of {check.n} images",
        )
        for check in best.values()
        if check.zero_share >= ZERO_SHARE
    ]
