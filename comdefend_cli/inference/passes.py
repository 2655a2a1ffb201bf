"""How windows go through the networks: which ones take them, with which noise, in which channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comdefend_cli.backends import bands
from comdefend_cli.backends.select import Engine
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.noise import draw_batch, mix_seed
from comdefend_cli.inference.settings import Settings
from comdefend_cli.inference.tiling import Batch
from comdefend_cli.network.luma import take_luma
from comdefend_cli.network.model import ComDefend

#: Streams of noise that one seed has; never 0, which `mix_seed` does not tell from no number.
_INPUT, _LOGITS = 1, 2
#: Of images; PyTorch has floats of 8 bits and fewer, with which it computes nothing.
_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def keep_channels(x: Tensor) -> Tensor:
    """The same."""
    return x


def repeat_gray(x: Tensor) -> Tensor:
    """(N, 1, H, W) as three equal channels."""
    return x.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Route:
    """Networks for an image.

    Attributes:
        model: PyTorch's.
        engine: what computes in their place, or None.
        input_noise: standard deviation of the noise before them, in 8-bit levels.
        adapt: turns windows (N, C, H, W) into the networks' channels.
        restore: turns their result back.
    """

    model: ComDefend
    engine: Engine | None
    input_noise: float
    adapt: Callable[[Tensor], Tensor] = keep_channels
    restore: Callable[[Tensor], Tensor] = keep_channels

    @property
    def parameter(self) -> Tensor:
        """One of the networks', whose device and dtype are theirs."""
        return next(self.model.parameters())


@dataclass(frozen=True)
class Pass:
    """An image's windows through the networks.

    Attributes:
        route: which.
        settings: for the noise and the gradient.
        top: the row of the image that the windows' rows are counted from.
    """

    route: Route
    settings: Settings
    top: int = 0

    def purify(self, windows: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Windows, float32 (N, C, H, W) in [0, 1], purified likewise, in one part or in bands of rows."""
        x = self.route.adapt(windows)
        samples = self.settings.samples if self.settings.noise_std or self.route.input_noise else 1
        if samples == 1:
            return map(self.route.restore, self._rebuild(x, batch, 0))
        rebuilt = [torch.cat(list(self._rebuild(x, batch, sample)), 2) for sample in range(samples)]
        return iter([self.route.restore(torch.stack(rebuilt).mean(0))])

    def encode(self, windows: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Their code, of several samples the first one's: zeros and ones (N, bits, H, W), likewise in parts; PyTorch's networks alone."""
        model = self.route.model
        noisy, noise = self._add_input_noise(self.route.adapt(windows), batch, 0), self._draw_logit_noise(batch, 0)
        if _is_large(noisy, self.route):
            return bands.encode(model, noisy, noise)
        return iter([model.encode(noisy, noise)])

    def _rebuild(self, x: Tensor, batch: Batch, sample: int) -> Iterator[Tensor]:
        """The networks' images of one draw of the noise."""
        route, noise = self.route, self._draw_logit_noise(batch, sample)
        noisy = self._add_input_noise(x, batch, sample)
        if route.engine:
            return iter([route.engine(noisy)])
        if _is_large(noisy, route) and not noisy.requires_grad:
            return bands.purify(route.model, noisy, noise)
        return iter([route.model(noisy, noise, self.settings.gradient if noisy.requires_grad else "none")])

    def _add_input_noise(self, x: Tensor, batch: Batch, sample: int) -> Tensor:
        """X with the noise of the image's place on it, clipped to [0, 1] as in training."""
        if self.route.input_noise == 0:
            return x
        noise = self._draw(batch, x.shape[1], mix_seed(self.settings.seed, sample, _INPUT))
        return torch.add(x, noise, alpha=self.route.input_noise / 255).clamp_(0, 1)

    def _draw_logit_noise(self, batch: Batch, sample: int) -> Tensor | None:
        if self.settings.noise_std == 0:
            return None
        seed = mix_seed(self.settings.seed, sample, _LOGITS) if sample else self.settings.seed
        return self._draw(batch, self.route.model.architecture.bits, seed) * self.settings.noise_std

    def _draw(self, batch: Batch, channels: int, seed: int) -> Tensor:
        return draw_batch(batch, channels, seed, self.top, self.route.parameter.device, own=self.settings.noise_per_image)


def choose_route(x: Tensor, routes: dict[int, Route]) -> Route:
    """The route of a batch, of those by the channels that their networks take; grey goes through colour where there is none for grey.

    Raises:
        TypeError, ValueError: no batch of images.
        UsageError: a colour image and networks for grey ones only.
    """
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"expected a dense tensor, not a {'nested' if x.is_nested else 'sparse'} one; use x.to_dense() or stack the images")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[2:]:
        remedy = "; use x[None] for a single image" if x.ndim == 3 and x.shape[0] in (1, 3) else ""
        raise ValueError(f"expected a tensor (N, C, H, W) with 1 or 3 channels and no empty side, not {tuple(x.shape)}{remedy}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"expected a floating-point tensor of 16 to 64 bits or a uint8 one, not {x.dtype}")
    if x.shape[1] in routes:
        return routes[x.shape[1]]
    if 3 not in routes:
        raise UsageError("these weights are for grey images: give weights for colour, or turn the image grey")
    return replace(routes[3], adapt=repeat_gray, restore=take_luma)


def wants_gradient(x: Tensor, settings: Settings) -> bool:
    """Whether a result is to be differentiated."""
    return torch.is_grad_enabled() and x.requires_grad and settings.gradient != "none"


def _is_large(windows: Tensor, route: Route) -> bool:
    """Whether each window is large enough to go through the networks in bands; batches of small ones are faster at once."""
    return windows.device.type == "cpu" and windows[0, 0].numel() > bands.count_band_pixels(route.model)
