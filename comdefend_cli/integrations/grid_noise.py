"""Normal noise in whole 8-bit levels, drawn exactly, so that a certificate holds in floating point too.

Rounding belongs to the classifier: for an 8-bit image x and normal noise z, round(x + z) = x + round(z), so a classifier of 8-bit images
under the noise round(z) is one under z, and what Cohen et al. (ICML 2019) prove of it holds. Only round(z), a whole number with known
probabilities, is drawn, from whole random numbers and a table; no rounding error of a sum of floats is left (Voracek and Hein, "Sound
randomized smoothing in floating-point arithmetic", ICLR 2023, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.extras import require

#: Standard deviations beyond which noise is left out; a normal variable lies there with a probability of 2e-23.
_REACH = 10.0
_BITS = 63
#: The most that a probability in float64 is wrong by; twice the rounding of a number just below one.
_STEP = 2.0**-52


@dataclass(frozen=True)
class GridNoise:
    """Normal noise of a standard deviation, rounded to whole levels.

    Attributes:
        sigma: standard deviation, pixels in [0, 1]; above 0 and at most 2.

    Raises:
        UsageError: a sigma out of range, or SciPy is not installed.
    """

    sigma: float
    _cuts: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, int | float) or not 0 < self.sigma <= 2:
            raise UsageError(f"sigma must be above 0 and at most 2 (pixels in [0, 1]), not {self.sigma}")
        normal = require("scipy.special", extra="evaluate").ndtr
        levels = np.arange(-self.most, self.most)
        shares = normal((levels + 0.5) / (255 * self.sigma))
        # Shares of 2**63 as whole numbers; a float64 just below one times 2**63 still fits.
        object.__setattr__(self, "_cuts", np.floor(np.clip(shares, 0, 1 - 2.0**-53) * 2.0**_BITS).astype(np.int64))

    @property
    def most(self) -> int:
        """The largest noise, in levels."""
        return ceil(255 * self.sigma * _REACH)

    def bound_error(self, values: int) -> float:
        """The most that any event's probability under noise on so many values differs from that under true rounded normal noise."""
        return values * (2 * self.most + 1) * _STEP

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Noise in levels, int16, each value of its own."""
        uniform = rng.integers(0, 2**_BITS, shape, dtype=np.int64)
        return (np.searchsorted(self._cuts, uniform, side="right") - self.most).astype(np.int16)

    def add(self, image: Tensor, count: int, rng: np.random.Generator) -> Tensor:
        """So many noisy copies of an 8-bit image, uint8 (C, H, W) to (count, C, H, W); the cut at 0 and 255 is part of the classifier."""
        noise = torch.from_numpy(self.draw((count, *image.shape), rng))
        return (noise + image.to(torch.int16)).clamp_(0, 255).to(torch.uint8)


def make_stream(seed: int | None, *place: int) -> np.random.Generator:
    """A stream of random numbers: of this seed and place, or for None of one that nobody can know."""
    entropy = None if seed is None else (seed, *place)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def find_radius(sigma: float, least: float) -> float:
    """The certified L2 radius (Cohen et al., theorem 1), pixels in [0, 1]; 0 where nothing is certified.

    Args:
        sigma: of the noise.
        least: the least probability of the class.
    """
    if least <= 0.5:
        return 0.0
    return sigma * float(require("scipy.special", extra="evaluate").ndtri(least))


def bound_share(count: int, n: int, alpha: float) -> float:
    """The least probability that `count` of `n` draws speak for, wrong with probability alpha at most (one-sided Clopper-Pearson)."""
    if count == 0:
        return 0.0
    return float(require("scipy.stats", extra="evaluate").beta.ppf(alpha, count, n - count + 1))
