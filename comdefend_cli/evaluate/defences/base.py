"""What every defence at test time is: a module from images to images, with a name and the settings that decide its result."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from comdefend_cli.errors import UsageError


class Defence(nn.Module):
    """Purifies images before a classifier sees them.

    Args:
        name: the canonical spec, as tables show it: "jpeg:quality=75".
        settings: JSON-able, all that decides the result: parameters, SHA-256 of weight files, versions of libraries.
        stochastic: whether two calls on the same images may differ.
        votes: calls that a prediction is averaged over.

    Attributes:
        gradients: those of :class:`comdefend_cli.integrations.Defended` that make sense: "identity" for one that
            cannot be differentiated, "straight-through" for its own gradient, "soft" for ComDefend's sigmoid.
        keeps_size: whether the result has the height and width of the input.

    Raises:
        UsageError: several votes for a defence that always says the same.

    Subclasses override `purify`.
    """

    gradients: ClassVar[tuple[str, ...]] = ("identity",)
    keeps_size: bool = True

    def __init__(self, name: str, settings: dict[str, Any], *, stochastic: bool = False, votes: int = 1) -> None:
        super().__init__()
        if votes > 1 and not stochastic:
            raise UsageError(f"{name}: votes need noise: every call gives the same result")
        self.name = name
        self.settings = {**settings, "votes": votes} if stochastic else settings
        self.stochastic = stochastic
        self.votes = votes
        self._seed = self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Purify.

        Args:
            x: float32 (N, C, H, W) in [0, 1], C = 1 or 3, on any device.

        Returns:
            The same shape (but see `keeps_size`), range, dtype and device.

        Raises:
            TypeError, ValueError: an input of another dtype or shape.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
            raise ValueError(f"expected a tensor (N, C, H, W) with 1 or 3 channels and no empty side, not {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"expected a floating-point tensor in [0, 1], not {x.dtype}")
        return self.purify(x)

    def purify(self, x: Tensor) -> Tensor:
        """:meth:`forward` for a checked input."""
        raise NotImplementedError

    def seed(self, seed: int) -> None:
        """Restart the random stream: the same calls in the same order then give the same results; 0 or more."""
        if seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {seed}")
        self._seed, self._calls = seed, 0

    def next_seed(self) -> int:
        """A seed for this call alone, from 0 to 2**64 - 1."""
        # Counted rather than a generator's state: copies of the module go on from here, each on its own.
        sequence = np.random.SeedSequence((self._seed, self._calls))
        self._calls += 1
        return int(sequence.generate_state(1, np.uint64)[0])
