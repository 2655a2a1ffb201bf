"""The protocol: which attacks meet which systems under three threat models, never mixed up.

Grey-box (the paper's): the attacker has the classifier, not the purifier; one set of adversarial images a classifier, which
every defence then meets. Adaptive: the attacker has both, and differentiates through the purifier in each way that it offers
(BPDA, Athalye et al., ICML 2018), over its noise where it has some (EOT). Black-box: queries to the whole system alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.recipes import name_attack
from comdefend_cli.evaluate.cells import THREATS, say_epsilon

if TYPE_CHECKING:
    from comdefend_cli.evaluate.attacks.catalogue import Attack

#: The strongest adaptive attack, which stands for several.
ENSEMBLE = "apgd-fmn-square"
#: Attacks on the classifier alone; FGSM's single step also tells how much PGD's many gain, in the adaptive model.
GRAY_ATTACKS = ("fgsm", "bim", "mi-fgsm", "pgd", "deepfool", "cw")
ADAPTIVE_ATTACKS = ("fgsm", "pgd", ENSEMBLE)
BLACK_ATTACKS = ("square",)
SLOW_ATTACKS = (ENSEMBLE, "square")
#: At which these are made unless told otherwise; where it is not asked for, at the middle one that is.
SLOW_EPSILON = 8.0
DEFAULT_ATTACKS = (*GRAY_ATTACKS, ENSEMBLE, *BLACK_ATTACKS)


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation.

    Attributes:
        attacks: names, see `DEFAULT_ATTACKS`.
        epsilons: most L-infinity distances, in 8-bit levels.
        slow_epsilons: those of them at which the ensemble and Square are made, which take far longer than the rest.
        threats: of `THREATS`; "clean" is always measured.
        limit_adaptive: images that adaptive attacks are made for, the first of all.
        limit_black_box: images for Square, likewise.
        steps: of PGD, for each of `restarts`.
        restarts: of PGD.
        eot: samples that a gradient is averaged over where a defence is random.
        resubmissions: how often an attacked image meets a random defence; one wrong answer is one too many.
        queries: of Square.
        float_pixels: leave adversarial images as they are, and do not round them to 8 bits as saved files are.
        seed: of the attacks and random defences.
        batch: images at a time.

    Raises:
        UsageError: a value out of range.
    """

    attacks: tuple[str, ...] = DEFAULT_ATTACKS
    epsilons: tuple[float, ...] = (2.0, 8.0, 16.0)
    slow_epsilons: tuple[float, ...] | None = None
    threats: tuple[str, ...] = THREATS
    limit_adaptive: int = 50
    limit_black_box: int = 20
    steps: int = 20
    restarts: int = 2
    eot: int = 20
    resubmissions: int = 10
    queries: int = 5000
    float_pixels: bool = False
    seed: int = 0
    batch: int = 100

    def __post_init__(self) -> None:
        if not self.attacks or not self.threats:
            raise UsageError("no attack, or no threat model, is named; leave the option out for all of them")
        object.__setattr__(self, "attacks", tuple(name_attack(name) for name in self.attacks))
        if unknown := [name for name in self.attacks if name not in DEFAULT_ATTACKS]:
            raise UsageError(f"unknown attack {unknown[0]!r}: use some of {', '.join(DEFAULT_ATTACKS)}")
        if unknown := [name for name in self.threats if name not in THREATS]:
            raise UsageError(f"unknown threat model {unknown[0]!r}: use some of {', '.join(THREATS)}")
        if not self.epsilons or not all(0 < epsilon <= 255 for epsilon in (*self.epsilons, *(self.slow_epsilons or ()))):
            raise UsageError("epsilons must be above 0 and at most 255/255")
        if not self.float_pixels and min(self.epsilons) < 1:
            smallest = say_epsilon(min(self.epsilons))
            raise UsageError(
                f"epsilon {smallest} is less than one 8-bit level, so rounding undoes the attack: use 1/255 or more, or --float"
            )
        if self.slow_epsilons is not None and (not self.slow_epsilons or not {*self.slow_epsilons} <= {*self.epsilons}):
            raise UsageError("the slow attacks' epsilons must be some of the epsilons, or APGD + FMN + Square and Square would be left out")
        for name in ("limit_adaptive", "limit_black_box", "steps", "restarts", "eot", "resubmissions", "queries", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {self.seed}")

    def choose(self, names: tuple[str, ...]) -> list[str]:
        """Those of `names` that were asked for."""
        return [name for name in names if name in self.attacks]

    def epsilons_of(self, attack: str) -> tuple[float, ...]:
        """The epsilons at which an adaptive or black-box attack is made."""
        if attack not in SLOW_ATTACKS:
            return self.epsilons
        usual = SLOW_EPSILON if SLOW_EPSILON in self.epsilons else sorted(self.epsilons)[len(self.epsilons) // 2]
        slow = (usual,) if self.slow_epsilons is None else self.slow_epsilons
        return tuple(epsilon for epsilon in self.epsilons if epsilon in slow)

    def make(self, name: str, *, stochastic: bool = False) -> Attack:
        """An attack with these settings, in its version for random defences where there is one."""
        from comdefend_cli.evaluate.attacks.catalogue import make_attack

        if name == "pgd":
            return make_attack("pgd", steps=self.steps, restarts=self.restarts)
        if name == "square":
            return make_attack("square", queries=self.queries)
        if name == ENSEMBLE:
            return make_attack("apgd-rand") if stochastic else make_attack(ENSEMBLE, queries=self.queries)
        return make_attack(name)
