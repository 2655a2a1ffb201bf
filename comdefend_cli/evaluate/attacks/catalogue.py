"""The attacks by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.recipes import RECIPES, name_attack
from comdefend_cli.evaluate.attacks.victim import Expectation, Victim, clip_to_ball, find_device, leave_undisturbed, seed_generators
from comdefend_cli.runtime.extras import require

#: From settings, model, clean images, labels and epsilon to adversarial images.
Perturb = Callable[[dict[str, Any], Victim, Tensor, Tensor, float], Tensor]
#: The distributions that the libraries come in.
DISTRIBUTIONS = {"foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}


@dataclass(frozen=True)
class Attack:
    """An attack with its settings; :func:`make_attack` makes one.

    Attributes:
        name: one of `recipes.NAMES`.
        title: as tables show it.
        library: "foolbox" or "art".
        settings: everything that decides the result but the seed, fit for JSON.
        minimum_norm: whether it seeks the smallest perturbation and does not depend on epsilon but for the final clipping, so
            that one run with epsilon 1 and :func:`.victim.clip_to_ball` serve every epsilon.
    """

    name: str
    title: str
    library: str
    settings: dict[str, Any]
    minimum_norm: bool
    _perturb: Perturb = field(repr=False, compare=False)
    _holds_samples: bool = field(repr=False, compare=False)

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        epsilon: float,
        *,
        seed: int,
        batch: int = 128,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Attack images.

        The model is attacked in evaluation mode where it stands, and comes back with its modes and its parameters'
        `requires_grad` as they were. What is random comes from `seed`; the global generators of torch, NumPy and Python
        are put back. Images that the attack fails on come back as its best try.

        Args:
            model: from float32 (N, C, H, W) in [0, 1] to logits (N, classes); a stochastic one inside an :class:`Expectation`.
            x: float (N, C, H, W) in [0, 1].
            y: int64 labels (N,).
            epsilon: most L-infinity distance, in [0, 1] units: 8 levels of 255 are 8 / 255.
            seed: of random starts and squares, 0 or more.
            batch: images at a time. The result may depend on it.
            progress: called after each batch with the number of images done since the last call.

        Returns:
            Adversarial images, float32 (N, C, H, W) in [0, 1] on x's device, within epsilon of x (and 1e-6 of rounding).

        Raises:
            ValueError: images, labels, epsilon or batch of another shape or range, or a model that does not return logits.
        """
        x = _checked(x, y, epsilon, batch)
        if len(x) == 0:
            return x.clone()
        device = find_device(model, x.device)
        if self._holds_samples and isinstance(model, Expectation):
            batch = max(1, batch // model.samples)
        done = []
        with leave_undisturbed(model), seed_generators(seed):
            victim = Victim.of(model)
            for images, labels in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
                clean, true = images.to(device).clone(), labels.to(device).clone()
                # ART refuses an epsilon of nothing.
                found = clean if epsilon == 0 else self._perturb(self.settings, victim, clean, true, epsilon)
                done.append(clip_to_ball(found.detach(), clean, epsilon).to(x.device))
                if progress:
                    progress(len(clean))
        return torch.cat(done)


def make_attack(name: str, **overrides: Any) -> Attack:
    """The attack of that name, with settings other than its defaults: `make_attack("pgd", steps=40, restarts=5)`.

    Raises:
        UsageError: an unknown name or setting, a value out of range, or a library that is not installed.
    """
    known = name_attack(name)
    recipe = RECIPES[known]
    allowed = {**recipe.tunable, **({} if recipe.reach is None else {"relative_step": 1.0})}
    for setting, value in overrides.items():
        _check_setting(known, setting, value, allowed)
    settings = {**recipe.tunable, **overrides}
    if recipe.reach is not None:
        settings.setdefault("relative_step", recipe.reach / settings["steps"])
    for library in recipe.needs:
        require(library, extra="evaluate")
    return Attack(
        known,
        recipe.title,
        recipe.library,
        {**settings, **recipe.fixed, "implementation": recipe.implementation},
        recipe.minimum_norm,
        _implementation(recipe.library, known),
        recipe.holds_samples,
    )


def find_versions() -> dict[str, str]:
    """Versions of the libraries that the attacks come from: {"foolbox": "3.3.4", "art": "1.20.1"}.

    Raises:
        UsageError: one is not installed.
    """
    found = {}
    for library, distribution in DISTRIBUTIONS.items():
        try:
            found[library] = metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise UsageError(f"{library} is not installed: pip install 'comdefend-cli[evaluate]'") from error
    return found


def _implementation(library: str, name: str) -> Perturb:
    if library == "foolbox":
        from comdefend_cli.evaluate.attacks import with_foolbox

        return with_foolbox.ATTACKS[name]
    from comdefend_cli.evaluate.attacks import with_art

    return with_art.ATTACKS[name]


def _check_setting(attack: str, setting: str, value: Any, allowed: dict[str, Any]) -> None:
    if setting not in allowed:
        raise UsageError(f"{attack} has no setting {setting!r}: it has {', '.join(allowed) or 'none'}")
    if isinstance(allowed[setting], bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(allowed[setting], int):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "a whole number of 1 or more"
    else:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits, wanted = number and 0 <= value < math.inf, "a number of 0 or more"
    if not fits:
        raise UsageError(f"{attack}: {setting} must be {wanted}, not {value!r}")


def _checked(x: Tensor, y: Tensor, epsilon: float, batch: int) -> Tensor:
    """The images in float32, if all that was given makes sense."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"expected a float tensor (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"expected {len(x)} labels in int64, not {y.dtype} {tuple(y.shape)}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("images must lie in [0, 1]")
    if not 0 <= epsilon <= 1 or batch < 1:
        raise ValueError(f"epsilon must lie in [0, 1] and batch be 1 or more, not {epsilon} and {batch}")
    return x.detach().float()
