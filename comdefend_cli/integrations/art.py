"""The purifier as a preprocessing defence of the Adversarial Robustness Toolbox (ART); needs the extra `[evaluate]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comdefend_cli.errors import UsageError
from comdefend_cli.integrations.defended import Defended, DefendedGradient
from comdefend_cli.runtime.extras import require

_preprocessor: Any = require("art.defences.preprocessor.preprocessor", extra="evaluate")


class ComDefendPreprocessor(_preprocessor.PreprocessorPyTorch):  # type: ignore[misc]
    """For `preprocessing_defences` of an ART estimator: `PyTorchClassifier(..., preprocessing_defences=[ComDefendPreprocessor(purifier)])`.

    ART differentiates through `forward` when all preprocessors are PyTorch ones (`estimate_forward` is for the others), so
    the gradient that was chosen is the one of `forward`. Put this preprocessor before ART's standardization, which ART
    does by itself with `preprocessing=(mean, std)`.

    Args:
        purifier: a :class:`comdefend_cli.Purifier`, or any module from (N, C, H, W) in [0, 1] to the same; its weights are
            shared, and where they are is where it computes, whatever the estimator's device.
        clip_values: the estimator's: the smallest and largest value of a pixel, two numbers.
        gradient: as in :class:`comdefend_cli.integrations.Defended`, where also the seeds of a noisy purifier are told.
        channels_first: the estimator's: (N, C, H, W) if true, (N, H, W, C) if not.
        batch_size: images purified at a time.
        apply_fit: purify training images too (the paper's section 4.4.2).
        apply_predict: purify in prediction and attacks.

    Raises:
        UsageError: an unknown gradient, clip values that are no range, or less than one image a batch.
    """

    params = ["clip_values", "channels_first", "batch_size"]  # noqa: RUF012 - as ART declares it.

    def __init__(
        self,
        purifier: nn.Module,
        clip_values: tuple[float, float] = (0.0, 1.0),
        gradient: DefendedGradient = "straight-through",
        channels_first: bool = True,
        batch_size: int = 128,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        first = next(purifier.parameters(), None)
        device_type = "cpu" if first is None or first.device.type == "cpu" else "gpu"
        super().__init__(device_type=device_type, is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.defended = Defended(purifier, nn.Identity(), None, gradient)
        self.clip_values = clip_values
        self.channels_first = channels_first
        self.batch_size = batch_size
        self._check_params()

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purify.

        Args:
            x: floating point, four-dimensional, within `clip_values`.
            y: labels, untouched.

        Returns:
            x purified, of the same shape, range, dtype and device, differentiable; and y.

        Raises:
            TypeError: x is not floating point.
            UsageError: the channels are not where `channels_first` says.
        """
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point images within clip_values, not {x.dtype}: use x.astype('float32')")
        self._check_channels(x)
        low, high = self.clip_values
        scaled = (x - low) / (high - low)
        images = scaled if self.channels_first else scaled.permute(0, 3, 1, 2)
        purified = torch.cat([self.defended(part) for part in torch.split(images, self.batch_size)])
        return (purified if self.channels_first else purified.permute(0, 2, 3, 1)) * (high - low) + low, y

    def seed(self, seed: int) -> None:
        """Restart the noise of a noisy purifier, see :meth:`comdefend_cli.integrations.Defended.seed`."""
        self.defended.seed(seed)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(clip_values={self.clip_values}, gradient={self.defended.gradient!r}, "
            f"channels_first={self.channels_first}, batch_size={self.batch_size}, apply_fit={self.apply_fit}, "
            f"apply_predict={self.apply_predict})"
        )

    def _check_params(self) -> None:
        try:
            low, high = (float(value) for value in self.clip_values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"clip_values must be two numbers, not {self.clip_values}") from error
        if not low < high:
            raise UsageError(f"clip_values must be the smallest and the largest value of a pixel, not {self.clip_values}")
        if self.batch_size < 1:
            raise UsageError(f"there must be at least one image a batch, not {self.batch_size}")

    def _check_channels(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise UsageError(f"expected images in four dimensions, not {tuple(x.shape)}")
        named, other = (x.shape[1], x.shape[3]) if self.channels_first else (x.shape[3], x.shape[1])
        if named not in (1, 3) and other in (1, 3):
            raise UsageError(f"{tuple(x.shape)} has its channels elsewhere: give channels_first={not self.channels_first}")
