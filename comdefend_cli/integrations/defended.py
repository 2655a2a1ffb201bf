"""`Defended`: purifier, normalization and classifier as one `nn.Module` with a gradient, as attack libraries take it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.networks import Normalize, Numbers
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.noise import mix_seed
from comdefend_cli.inference.purifier import Purifier

DefendedGradient = Literal["straight-through", "identity", "soft", "none"]
DEFENDED_GRADIENTS: tuple[str, ...] = get_args(DefendedGradient)

#: From (N, C, H, W) to the same.
Transform = Callable[[Tensor], Tensor]


class Defended(nn.Module):
    """A classifier behind a purifier: `classifier(normalize(purifier(x)))`, whose input gradient is chosen.

    The forward values are the same for every gradient; what differs is what an attacker who differentiates sees.

    Args:
        purifier: a :class:`comdefend_cli.Purifier`, a module that has some inside, or any module from (N, C, H, W) in
            [0, 1] to the same (another size is fine but for "identity"). Its weights are shared, not copied. What this
            object must change in a `Purifier` (gradient, seed) it changes in a shallow copy of it and of what holds it,
            `Defended.purifier`; the one given keeps its settings, and later changes to them are not seen here.
        classifier: from what `normalize` returns to logits (N, classes).
        normalize: between the two: a callable on (N, C, H, W), or (mean, std), each one number or one a channel, for
            `(x - mean) / std`; None for nothing.
        gradient: of the purifier:
            "straight-through" passes the gradient unchanged through the rounding of the code, and through both networks
            (Bengio et al., 2013); "soft" multiplies it by the sigmoid's slope at the rounding. A purifier that is not
            ComDefend's keeps its own gradient with both.
            "identity" is the classifier's gradient at the purified image (BPDA, Athalye et al., ICML 2018, section 4.1),
            for any purifier.
            "none" is zero: what a defence looks like that hides its gradient. It makes nothing safer.
        votes: with more than 1, the mean of the softmax over that many purifications, each with noise of its own; the
            gradient goes through all of them.

    A `Purifier` with noise gives one place in the image the same noise in every call and every image, as long as its
    `settings.seed` is the same. So this object takes a new seed at each vote of each call, from its own count of draws, which
    begins at the purifier's seed and which :meth:`seed` restarts; and each image of a batch has noise of its own.

    Raises:
        UsageError: an unknown gradient, less than one vote, or numbers that cannot normalize.
    """

    def __init__(
        self,
        purifier: nn.Module,
        classifier: nn.Module,
        normalize: Transform | tuple[Numbers, Numbers] | None = None,
        gradient: DefendedGradient = "straight-through",
        votes: int = 1,
    ) -> None:
        super().__init__()
        if gradient not in DEFENDED_GRADIENTS:
            raise UsageError(f"unknown gradient {gradient!r}: use one of {', '.join(DEFENDED_GRADIENTS)}")
        if votes < 1:
            raise UsageError(f"there must be at least one vote, not {votes}")
        self.purifier = _copy_with_gradient(purifier, gradient)
        self.normalize = make_normalizer(normalize)
        self.classifier = classifier
        self.gradient = gradient
        self.votes = votes
        self._seeds = [part.settings.seed for part in self._find_purifiers()]
        self._draws = 0

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: floating point (N, C, H, W) in [0, 1], or uint8.

        Returns:
            Logits (N, classes); with `votes` > 1 the log of the mean softmax.

        Raises:
            TypeError: x is neither.
            UsageError: the purifier has no gradient of its own though one is wanted, or the gradient is the identity and
                the purifier changes the shape; or `normalize` has numbers for other channels.
        """
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if not x.is_floating_point():
            raise TypeError(f"expected a floating-point tensor (N, C, H, W) in [0, 1], or uint8, not {x.dtype}")
        if self.votes == 1:
            return self._classify(x)
        votes = torch.stack([self._classify(x).log_softmax(1) for _ in range(self.votes)])
        return votes.logsumexp(0) - math.log(self.votes)

    def seed(self, seed: int) -> None:
        """Restart the noise: after the same seed, the same calls give the same results.

        Args:
            seed: 0 or more; also given to the purifier's own `seed` method, if it has one.

        Raises:
            UsageError: a negative seed.
        """
        if seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {seed}")
        self._seeds = [seed] * len(self._seeds)
        self._draws = 0
        restart = getattr(self.purifier, "seed", None)
        if callable(restart):
            restart(seed)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"gradient={self.gradient!r}, votes={self.votes}"

    def _classify(self, x: Tensor) -> Tensor:
        purified = self._purify(x)
        return cast(Tensor, self.classifier(self.normalize(purified) if self.normalize is not None else purified))

    def _purify(self, x: Tensor) -> Tensor:
        """One purification with noise of its own, and with the gradient that was chosen."""
        self._renew_noise()
        if self.gradient in ("identity", "none"):
            with torch.no_grad():
                purified = self.purifier(x.detach())
            if self.gradient == "identity" and purified.shape != x.shape:
                raise UsageError(f"the purifier made {tuple(purified.shape)} of {tuple(x.shape)}: the identity needs the same shape")
            return cast(Tensor, _InPlaceOf.apply(x, purified, self.gradient == "identity"))  # type: ignore[no-untyped-call]
        purified = self.purifier(x)
        if torch.is_grad_enabled() and x.requires_grad and not purified.requires_grad:
            raise UsageError("this purifier has no gradient of its own: use gradient='identity'")
        return cast(Tensor, purified)

    def _find_purifiers(self) -> list[Purifier]:
        """The purifier, or those inside it, always in the same order."""
        return [part for part in self.purifier.modules() if isinstance(part, Purifier)]

    def _renew_noise(self) -> None:
        """Give each purifier with noise a seed that it has not had."""
        for seed, part in zip(self._seeds, self._find_purifiers(), strict=True):
            if part.settings.random:
                part.settings = replace(part.settings, seed=mix_seed(seed, self._draws), noise_per_image=True)
        self._draws += 1


def _copy_with_gradient(module: nn.Module, gradient: DefendedGradient) -> nn.Module:
    """The module with the gradient set in every `Purifier` inside: those and what holds them are new objects, all else is shared."""
    if not any(isinstance(part, Purifier) for part in module.modules()):
        return module
    twin = copy.copy(module)
    children = {name: child if child is None else _copy_with_gradient(child, gradient) for name, child in module._modules.items()}
    # Shallow copies share the dictionary of their parts; parameters and buffers may stay shared, so that both move together.
    twin.__dict__["_modules"] = children
    if isinstance(twin, Purifier) and gradient in ("straight-through", "soft"):
        twin.settings = replace(twin.settings, gradient=gradient)
    return twin


def make_normalizer(normalize: Transform | tuple[Numbers, Numbers] | None) -> Transform | None:
    """A callable as it is, (mean, std) as a module."""
    if isinstance(normalize, tuple) and len(normalize) == 2:
        return Normalize(*normalize)
    if normalize is None or callable(normalize):
        return normalize
    raise UsageError("normalize must be a callable or a tuple (mean, std)")


class _InPlaceOf(torch.autograd.Function):
    """The second argument's values with the first one's gradient: passed unchanged, or zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purified: Tensor, passes: bool) -> Tensor:
        ctx.passes, ctx.shape = passes, x.shape
        return purified.view_as(purified)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        # Zeros and not None: attack libraries stop at a gradient that is missing.
        return grad if ctx.passes else grad.new_zeros(ctx.shape), None, None
