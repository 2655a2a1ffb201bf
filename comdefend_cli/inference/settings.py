"""`Settings`: how images are purified. Importing it brings in nothing large, so that the command line reads the defaults cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.network.model import Gradient

Tiling = Literal["exact", "paper"]


@dataclass(frozen=True)
class Settings:
    """How images are purified; everything here but `tile` changes the result.

    Attributes:
        tiling: "exact" for the whole-image result, "paper" for independent 32x32 patches.
        tile: side of a tile of exact tiling in pixels, or None for the device's default. Where memory runs out, tiles are smaller.
        noise_std: standard deviation of Gaussian noise on the logits; the authors' release uses 1, 0 is none.
        seed: of the noise, which depends on it and on a pixel's place alone: each image, of a batch too, and each call has the same.
        noise_per_image: give each image of a batch noise of its own, by its place in the batch.
        gradient: what `backward` sees at the rounding, see :func:`comdefend_cli.network.model.binarize`.
        input_noise: standard deviation of Gaussian noise on the image, in 8-bit levels, which drowns an attack before weights that
            were trained to remove noise rebuild the image (denoised smoothing, Salman et al., NeurIPS 2020). 0 is none, None
            what the weights are made for, as their file says.
        samples: images rebuilt from as many draws of the noise; their mean is the result. Networks without noise rebuild one.

    Raises:
        UsageError: a value out of range, or two that exclude each other.
    """

    tiling: Tiling = "exact"
    tile: int | None = None
    noise_std: float = 0.0
    seed: int = 0
    noise_per_image: bool = False
    gradient: Gradient = "straight-through"
    input_noise: float | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        from comdefend_cli.inference.tiling import PATCH  # Imports PyTorch, as the next does.
        from comdefend_cli.network.model import GRADIENTS

        if self.tiling not in ("exact", "paper"):
            raise UsageError(f"unknown tiling {self.tiling!r}: use exact or paper")
        if self.tile is not None and self.tile < 1:
            raise UsageError(f"a tile must be at least 1 pixel a side, not {self.tile}")
        if self.tile is not None and self.tiling == "paper":
            raise UsageError(f"a tile's side is for exact tiling, the paper's patches are {PATCH}x{PATCH}: leave one of the two out")
        for std in (self.noise_std, self.input_noise or 0.0):
            if not 0 <= std < float("inf"):
                raise UsageError(f"the noise's standard deviation must be 0 or more, not {std}")
        if self.samples < 1:
            raise UsageError(f"there must be at least one sample, not {self.samples}")
        if self.samples > 1 and self.input_noise == 0 == self.noise_std:
            raise UsageError("several samples need noise: without it all of them are the same image")
        if self.seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {self.seed}")
        if self.gradient not in GRADIENTS:
            raise UsageError(f"unknown gradient {self.gradient!r}: use one of {', '.join(GRADIENTS)}")

    @property
    def random(self) -> bool:
        """Whether noise is asked for; the weights' own, which is the same for every image and call, is a part of the purifier."""
        return self.noise_std > 0 or (self.input_noise or 0) > 0
