"""Attacks from foolbox (Rauber et al., JOSS 2020). Imported only where foolbox is known to be installed."""

from __future__ import annotations

from functools import partial
from typing import Any

import eagerpy
import foolbox
import torch
from foolbox import attacks
from foolbox.attacks.gradient_descent_base import normalize_lp_norms
from torch import Tensor, nn

from comdefend_cli.evaluate.attacks.victim import Victim, Watched, Worst

Settings = dict[str, Any]


def fgsm(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """FGSM (Goodfellow et al., ICLR 2015): clip(x + epsilon * sign(gradient of the cross-entropy)), from x itself."""
    return _follow(attacks.LinfFastGradientAttack(random_start=False), victim, x, y, epsilon)


def bim(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """BIM (Kurakin et al., ICLR workshop 2017): signed steps from x itself, clipped to the ball after each; the last one counts."""
    attack = attacks.LinfBasicIterativeAttack(rel_stepsize=settings["relative_step"], steps=settings["steps"], random_start=False)
    return _follow(attack, victim, x, y, epsilon)


def mi_fgsm(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """MI-FGSM (Dong et al., CVPR 2018): BIM along the accumulated gradient, equation 6."""
    attack = _MomentumMethod(
        momentum=settings["momentum"], rel_stepsize=settings["relative_step"], steps=settings["steps"], random_start=False
    )
    return _follow(attack, victim, x, y, epsilon)


def pgd(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """PGD (Madry et al., ICLR 2018): BIM from a uniformly random point of the ball, again and again.

    Images misclassified after one start are not attacked again; of failures the one of lowest margin counts.
    """
    attack = attacks.LinfProjectedGradientDescentAttack(
        rel_stepsize=settings["relative_step"], steps=settings["steps"], random_start=settings["random_start"]
    )
    worst = Worst(x, y)
    for _ in range(settings["restarts"]):
        rows = worst.standing()
        if len(rows) == 0:
            break
        found = _follow(attack, victim, x[rows], y[rows], epsilon)
        worst.see(found, victim.predict(found), rows)
    return worst.images


def deepfool(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """DeepFool for L-infinity (Moosavi-Dezfooli et al., CVPR 2016): steps to the nearest linearised class border.

    It seeks the smallest perturbation, whatever its size, and does not know epsilon: the caller clips it to the ball.
    """
    attack = attacks.LinfDeepFoolAttack(
        steps=settings["steps"], candidates=settings["candidates"], overshoot=settings["overshoot"], loss="logits"
    )
    return _run(attack, victim.whole, x, y)


def carlini_wagner(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """C&W for L2 (Carlini and Wagner, IEEE S&P 2017): Adam on distance^2 + c * margin, with a binary search for c.

    It seeks the smallest Euclidean perturbation and does not know epsilon: the caller clips it to the L-infinity ball.
    """
    attack = attacks.L2CarliniWagnerAttack(
        binary_search_steps=settings["search_steps"],
        steps=settings["steps"],
        stepsize=settings["step_size"],
        confidence=settings["confidence"],
        initial_const=settings["initial_const"],
        abort_early=settings["abort_early"],
    )
    worst = Worst(x, y)
    found = _run(attack, Watched(victim.whole, worst).eval(), x, y)
    # foolbox gives a black image where it found nothing.
    missed = (found == 0).flatten(1).all(1)
    return torch.where(missed[:, None, None, None], worst.images, found)


def fast_minimum_norm(steps: int, victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """FMN for L-infinity (Pintor et al., NeurIPS 2021): gradient steps on a ball that shrinks and grows about the border."""
    return _run(attacks.LInfFMNAttack(steps=steps), victim.whole, x, y)


ATTACKS = {"fgsm": fgsm, "bim": bim, "mi-fgsm": mi_fgsm, "pgd": pgd, "deepfool": deepfool, "cw": carlini_wagner}


class _MomentumMethod(attacks.LinfMomentumIterativeFastGradientMethod):  # type: ignore[misc]
    """foolbox's class accumulates the signs of the gradients; the paper the gradients, each of L1 norm 1. This one too."""

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        """Divide by the L1 norm; the sign is taken after accumulation."""
        return normalize_lp_norms(gradients, p=1)


def _follow(attack: Any, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Run an attack that climbs the cross-entropy; that of a random model's expectation, if it has samples."""
    if victim.samples > 1:
        attack.value_and_grad = partial(_expected_value_and_grad, victim.samples)
    return _run(attack, victim.once, x, y, epsilon=epsilon)


def _run(attack: Any, model: nn.Module, x: Tensor, y: Tensor, **options: float) -> Tensor:
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    found: Tensor = attack.run(wrapped, x, foolbox.criteria.Misclassification(y), **options)
    return found


def _expected_value_and_grad(samples: int, loss: Any, x: Any) -> tuple[Any, Any]:
    """In place of foolbox's: the mean over draws, with one draw's graph in memory at a time."""
    value, gradient = eagerpy.value_and_grad(loss, x)
    for _ in range(samples - 1):
        more_value, more_gradient = eagerpy.value_and_grad(loss, x)
        value, gradient = value + more_value, gradient + more_gradient
    return value / samples, gradient / samples
