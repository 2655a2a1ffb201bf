"""Which attacks meet which systems: the cells of an evaluation, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from comdefend_cli.evaluate.cells import ADAPTIVE, BLACK_BOX, CLEAN, GRAY_BOX
from comdefend_cli.evaluate.protocol import ADAPTIVE_ATTACKS, BLACK_ATTACKS, ENSEMBLE, GRAY_ATTACKS, Protocol
from comdefend_cli.evaluate.systems import System

#: Of a defence's gradients, the order in which they are tried; the ensemble goes through the first that it offers alone.
_PREFERENCE = ("straight-through", "identity", "soft")


@dataclass(frozen=True)
class Planned:
    """A cell to be measured; fields as of :class:`comdefend_cli.evaluate.cells.Cell`."""

    system: System
    threat: str
    attack: str = ""
    epsilon: float | None = None
    gradient: str = ""


def plan_cells(protocol: Protocol, systems: list[System]) -> Iterator[Planned]:
    """All cells: clean, grey-box, adaptive, black-box.

    Systems that share a classifier come one after another in the grey-box model, where they share the images.
    """
    yield from (Planned(system, CLEAN) for system in systems)
    if GRAY_BOX in protocol.threats:
        for attack in protocol.choose(GRAY_ATTACKS):
            for epsilon in protocol.epsilons:
                yield from (Planned(system, GRAY_BOX, attack, epsilon) for system in systems)
    if ADAPTIVE in protocol.threats:
        for system in systems:
            for attack in protocol.choose(ADAPTIVE_ATTACKS):
                for gradient in _choose_gradients(system, attack):
                    yield from (Planned(system, ADAPTIVE, attack, epsilon, gradient) for epsilon in protocol.epsilons_of(attack))
    if BLACK_BOX in protocol.threats:
        for system in systems:
            if not system.defence.stochastic:  # Square keeps the best of noisy answers, which is luck and no attack.
                for attack in protocol.choose(BLACK_ATTACKS):
                    yield from (Planned(system, BLACK_BOX, attack, epsilon) for epsilon in protocol.epsilons_of(attack))


def _choose_gradients(system: System, attack: str) -> list[str]:
    offered = [gradient for gradient in _PREFERENCE if gradient in system.defence.gradients]
    return offered[:1] if attack == ENSEMBLE else offered
