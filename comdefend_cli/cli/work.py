"""What the commands that purify have in common: a purifier as their options ask for, and the record of how images were computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli import progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.origin import tell_origin

if TYPE_CHECKING:
    from comdefend_cli.batch.request import Request
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.inference.settings import Settings
    from comdefend_cli.network.weight_file import Weights


class Purifiers:
    """The purifiers of the images of one command, with their weights: one for colour and one for grey, made when they are wanted.

    Args:
        make_request: says what is asked for, once PyTorch may be imported.
        quiet: say nothing.
    """

    def __init__(self, make_request: Callable[[], Request], *, quiet: bool) -> None:
        self._make_request = make_request
        self._quiet = quiet
        self._made: dict[str, tuple[Purifier, Weights]] = {}

    def make(self, *, gray: bool, how: str = "") -> tuple[Purifier, Weights]:
        """That of a grey or a colour image; the first time, where the device was left open, says what it took and `how`.

        Raises:
            UsageError, WeightsError: as of :meth:`comdefend_cli.inference.purifier.Purifier.from_pretrained`.
        """
        from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY

        with progress.show_waiting("loading the weights", quiet=self._quiet):
            request = self._make_request()
            name = request.weights or (DEFAULT_GRAY if gray else DEFAULT_COLOR)
            if name in self._made:
                return self._made[name]
            made = self._made[name] = self._load(request, name)
        if request.device == "auto" and len(self._made) == 1:
            from comdefend_cli.runtime.device import describe_device

            purifier = made[0]
            notice(f"computing on {describe_device(next(purifier.parameters()).device)} in {purifier.how}{how}", quiet=self._quiet)
        tell_origin([made[1].sha256], quiet=self._quiet)
        return made

    def _load(self, request: Request, name: str) -> tuple[Purifier, Weights]:
        from comdefend_cli.network.registry import load_weights
        from comdefend_cli.runtime.machine import limit_threads

        limit_threads()
        loaded = load_weights(name)
        return request.build(loaded), loaded


def describe_settings(settings: Settings, device: str, precision: str, backend: str) -> dict[str, Any]:
    """How images were computed, for scripts."""
    return {
        "device": device,
        "precision": precision,
        "backend": backend,
        "tiling": settings.tiling,
        "tile": settings.tile,
        "noise_std": settings.noise_std,
        "input_noise": settings.input_noise,  # Null: each image's weights say it.
        "samples": settings.samples,
        "seed": settings.seed,
    }


def describe_image(
    shape: tuple[int, int, int], alpha: bool, seconds: float, purifier: Purifier, weights: Weights, *, psnr_db: float, ssim: float | None
) -> dict[str, Any]:
    """What was done with one image of that height, width and channels, for scripts; null for a PSNR or SSIM that is not finite."""
    from comdefend_cli.runtime.device import describe_device

    height, width, channels = shape
    device = describe_device(next(purifier.parameters()).device)
    fidelity = {"psnr_db": psnr_db, "ssim": ssim}
    return {
        "width": width,
        "height": height,
        "channels": channels,
        "alpha": alpha,
        "seconds": round(seconds, 4),
        "megapixels_per_second": round(width * height / 1e6 / seconds, 4),
        **describe_settings(purifier.settings, device, purifier.precision, purifier.backend),
        "input_noise": purifier.input_noise(weights.header.architecture.channels),
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        **{name: round(value, 4) if value is not None and math.isfinite(value) else None for name, value in fidelity.items()},
    }
