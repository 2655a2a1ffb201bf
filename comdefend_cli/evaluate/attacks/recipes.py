"""What each attack is: title, library, settings. Imports nothing that takes long, so that the command line may ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comdefend_cli.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How `catalogue.make_attack` makes an attack.

    Attributes:
        title, library: as of `catalogue.Attack`.
        implementation: what runs, for the settings.
        tunable: settings that the caller may choose, with their defaults.
        fixed: further settings.
        reach: length of all steps together over epsilon, from which `relative_step` follows; None without such steps.
        needs: libraries.
        minimum_norm: as of `catalogue.Attack`.
        holds_samples: whether memory grows with the samples of an `victim.Expectation`.
    """

    title: str
    library: str
    implementation: str
    tunable: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    reach: float | None = None
    needs: tuple[str, ...] = ("foolbox",)
    minimum_norm: bool = False
    holds_samples: bool = False


_CLIMB = {"loss": "cross-entropy, true labels", "kept": "last iterate"}
_CLIPPED = "clipped to the L-infinity ball of epsilon"
_APGD = "initial step 2 epsilon, uniform random start, every iterate counts"
RECIPES = {
    "fgsm": Recipe(
        "FGSM",
        "foolbox",
        "LinfFastGradientAttack",
        fixed={"steps": 1, "relative_step": 1.0, "random_start": False, "loss": "cross-entropy, true labels"},
    ),
    "bim": Recipe("BIM", "foolbox", "LinfBasicIterativeAttack", {"steps": 10}, {"random_start": False, **_CLIMB}, reach=2.5),
    "mi-fgsm": Recipe(
        "MI-FGSM",
        "foolbox",
        "LinfMomentumIterativeFastGradientMethod, accumulating gradients of L1 norm 1 instead of signs",
        {"steps": 10, "momentum": 1.0},
        {"random_start": False, **_CLIMB},
        reach=1.0,
    ),
    "pgd": Recipe(
        "PGD",
        "foolbox",
        "LinfProjectedGradientDescentAttack",
        {"steps": 40, "restarts": 5, "random_start": True},
        {"loss": "cross-entropy, true labels", "kept": "last iterate of the first start that succeeds, else of lowest margin"},
        reach=2.5,
    ),
    "deepfool": Recipe(
        "DeepFool",
        "foolbox",
        "LinfDeepFoolAttack",
        {"steps": 50, "candidates": 10, "overshoot": 0.02},
        {"norm": "L-infinity", "loss": "logits", "result": _CLIPPED},
        minimum_norm=True,
        holds_samples=True,
    ),
    "cw": Recipe(
        "C&W",
        "foolbox",
        "L2CarliniWagnerAttack",
        {"search_steps": 5, "steps": 100, "step_size": 0.01, "confidence": 0.0, "initial_const": 0.1, "abort_early": True},
        {"norm": "L2", "result": _CLIPPED},
        minimum_norm=True,
        holds_samples=True,
    ),
    "apgd-fmn-square": Recipe(
        "APGD + FMN + Square",
        "art",
        "AutoProjectedGradientDescent and SquareAttack of ART, LInfFMNAttack of foolbox",
        {"steps": 100, "restarts": 1, "targets": 9, "fmn_steps": 100, "queries": 5000, "p_init": 0.8},
        {
            "ensemble": [
                f"APGD on cross-entropy: {_APGD}",
                f"APGD on targeted DLR, each of the highest other classes: {_APGD}",
                f"FMN, {_CLIPPED}",
                "Square: one square for all images of a batch a query",
            ],
        },
        needs=("foolbox", "art"),
        holds_samples=True,
    ),
    "apgd-rand": Recipe(
        "APGD (rand)",
        "art",
        "AutoProjectedGradientDescent",
        {"steps": 100, "restarts": 1},
        {"ensemble": [f"APGD on cross-entropy: {_APGD}", f"APGD on DLR: {_APGD}"]},
        needs=("art",),
    ),
    "square": Recipe(
        "Square",
        "art",
        "SquareAttack",
        {"queries": 5000, "p_init": 0.8},
        {"restarts": 1, "loss": "margin of logits", "squares": "one for all images of a batch a query"},
        needs=("art",),
    ),
}
#: Every attack, in the order of a table.
NAMES: tuple[str, ...] = tuple(RECIPES)
#: What earlier releases called AutoAttack, which has FAB where these have FMN or nothing, and their present names.
RENAMED = {"autoattack": "apgd-fmn-square", "autoattack-rand": "apgd-rand"}
#: Other names for attacks.
_ALIASES = {"ifgsm": "bim", "i-fgsm": "bim", "mifgsm": "mi-fgsm", "c&w": "cw", **RENAMED}


def name_attack(name: str) -> str:
    """An attack's own name, of `NAMES`.

    Raises:
        UsageError: there is none of that name.
    """
    known = _ALIASES.get(name.lower(), name.lower())
    if known not in RECIPES:
        raise UsageError(f"unknown attack {name!r}: use some of {', '.join(NAMES)}")
    return known
