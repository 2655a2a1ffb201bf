"""The discretised logistic mixture of PixelCNN++ (Salimans et al., ICLR 2017, sections 2.1 and 2.2).

A pixel's channels share one mixture of K logistic distributions over [-1, 1], cut into 256 bins; the outermost two reach to
infinity. A component's mean of green depends linearly on red, that of blue on red and green (eq. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: Keeps a component from becoming narrower than a bin can tell.
MIN_LOG_SCALE = -7.0
HALF_BIN = 1 / 255


def parameters_a_component(channels: int) -> int:
    """Numbers that describe a component: weight, mean and log scale a channel; with three channels, how they depend on each other."""
    return 1 + 2 * channels + (3 if channels == 3 else 0)


def to_unit(levels: Tensor) -> Tensor:
    """Levels from 0 to 255 as values from -1 to 1."""
    return levels / 127.5 - 1


class Mixture:
    """The distribution of pixels, from a network's output.

    Args:
        parameters: (..., K * `parameters_a_component`), any floating dtype that the result should have.
        channels: 1 or 3.

    Attributes:
        log_weights: (..., K).
    """

    def __init__(self, parameters: Tensor, channels: int) -> None:
        count = parameters.shape[-1] // parameters_a_component(channels)
        weights, means, scales, coefficients = parameters.tensor_split(
            [count, count * (1 + channels), count * (1 + 2 * channels)],
            dim=-1,
        )
        self.channels = channels
        self.log_weights = weights.log_softmax(-1)
        self._means = means.reshape(*means.shape[:-1], channels, count)
        self._log_scales = scales.reshape(*scales.shape[:-1], channels, count).clamp(min=MIN_LOG_SCALE)
        self._coefficients = coefficients.reshape(*coefficients.shape[:-1], 3, count).tanh() if channels == 3 else None

    def bins(self, channel: int, earlier: Tensor, levels: Tensor) -> Tensor:
        """Log probability of levels of one channel in each component.

        Args:
            channel: 0 for red, and so on.
            earlier: the pixel's channels before it, (..., channel), in [-1, 1].
            levels: (..., V), whole numbers from 0 to 255, as floating point.

        Returns:
            (..., V, K).
        """
        mean, log_scale = self._means[..., channel, :], self._log_scales[..., channel, :]
        if self._coefficients is not None:
            # Of green: the first coefficient, on red; of blue: the other two, on red and green.
            first = channel * (channel - 1) // 2
            for index in range(channel):
                mean = mean + self._coefficients[..., first + index, :] * earlier[..., index, None]
        return bin_log_probability(levels, mean, log_scale)

    def log_probability(self, levels: Tensor) -> Tensor:
        """Log probability of whole pixels.

        Args:
            levels: (..., channels), whole numbers from 0 to 255, as floating point.

        Returns:
            (...), in nats.
        """
        unit = to_unit(levels)
        total = self.log_weights
        for channel in range(self.channels):
            total = total + self.bins(channel, unit[..., :channel], levels[..., channel, None]).squeeze(-2)
        return total.logsumexp(-1)


def bin_log_probability(levels: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of the mass that a logistic distribution puts on a level's bin; exact also far from the mean.

    Args:
        levels: (..., V), from 0 to 255.
        mean: (..., K), in units of [-1, 1].
        log_scale: (..., K).

    Returns:
        (..., V, K). With sigmoid s, s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), which loses no digits.
    """
    sharpness = torch.exp(-log_scale)[..., None, :]
    centre = to_unit(levels)[..., None] - mean[..., None, :]
    below_upper = -softplus((centre + HALF_BIN) * -sharpness)
    above_lower = -softplus((centre - HALF_BIN) * sharpness)
    between = below_upper + above_lower + torch.log(-torch.expm1(-2 * HALF_BIN * sharpness))
    wide = levels[..., None]
    return torch.where(wide == 0, below_upper, torch.where(wide == 255, above_lower, between))
