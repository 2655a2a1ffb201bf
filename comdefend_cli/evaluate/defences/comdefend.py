"""ComDefend as a defence at test time: a weight file, with noise on the logits and votes on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from comdefend_cli import weights
from comdefend_cli.device import dtype_name
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.purifier import Purifier, Settings, Tiling
from comdefend_cli.tiles import Tile, window_noise


class ComDefendDefence(Defence):
    """Purification by ComDefend (Jia et al., CVPR 2019).

    Args:
        name: canonical spec.
        weights_name: a name that ships, or a weight file; the header says for how many channels.
        noise: standard deviation of Gaussian noise on the logits before they are rounded; 0 for none. Every call
            and every picture of a batch has noise of its own.
        votes: predictions averaged, each with noise of its own.
        tiling: "exact" or "paper", see :class:`comdefend_cli.Settings`.
        device, precision: as for :meth:`comdefend_cli.Purifier.from_pretrained`.

    Raises:
        UsageError: unknown weights, device or precision, or votes without noise.
        WeightsError: the weights cannot be read.
    """

    gradients: ClassVar[tuple[str, ...]] = ("identity", "straight-through", "soft")

    def __init__(
        self, name: str, weights_name: str, *, noise: float = 0.0, votes: int = 1, tiling: str = "exact", device: str, precision: str
    ) -> None:
        loaded = weights.load(weights_name)
        settings = Settings(cast(Tiling, tiling), noise_std=noise)
        purifier = _NoiseByPicture.from_weights([loaded], device=device, precision=precision, settings=settings)
        record: dict[str, Any] = {
            "defence": "comdefend",
            "weights": loaded.name,
            "sha256": loaded.sha256,
            "channels": loaded.header.architecture.channels,
            "bits": loaded.header.architecture.bits,
            "noise": noise,
            "tiling": tiling,
            "precision": dtype_name(next(purifier.parameters()).dtype),
        }
        super().__init__(name, record, stochastic=noise > 0, votes=votes)
        self.purifier = purifier

    def purify(self, x: Tensor) -> Tensor:
        """The rebuilt pictures; differentiable as `purifier.settings.gradient` says."""
        if self.stochastic:
            self.purifier.settings = replace(self.purifier.settings, seed=self.next_seed())
        return self.purifier.purify(x)


class _NoiseByPicture(Purifier):
    """A purifier whose noise differs from picture to picture of a batch.

    `Purifier` gives all of them the same, which is what purifying a folder wants. Here it would make the errors of
    a batch's pictures depend on each other, and an interval for their accuracy too narrow.
    """

    def _noise(self, batch: list[tuple[int, Tile]], bits: int) -> Tensor | None:
        std, seed = self.settings.noise_std, self.settings.seed
        if std == 0:
            return None
        windows = [window_noise((seed << 32) + index, bits, tile.rows.window, tile.columns.window) for index, tile in batch]
        # RecCNN takes what the sum of logits and noise is in, and knows its weights' precision only.
        return (torch.stack(windows) * std).to(next(self.parameters()).dtype)
