"""What the commands that purify have in common: a purifier as their options ask for, and the record of how images were computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli.console import notice

if TYPE_CHECKING:
    from comdefend_cli.batch.request import Request
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.inference.settings import Settings
    from comdefend_cli.network.weight_file import Weights


def make_purifier(request: Request, *, gray: bool, quiet: bool, how: str = "") -> tuple[Purifier, Weights]:
    """The purifier of one image, and its weights; where the device was left open, says what it took and `how`.

    Raises:
        UsageError, WeightsError: as of :meth:`comdefend_cli.inference.purifier.Purifier.from_pretrained`.
    """
    from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import limit_threads

    limit_threads()
    loaded = load_weights(request.weights or (DEFAULT_GRAY if gray else DEFAULT_COLOR))
    purifier = request.build(loaded)
    if request.device == "auto":
        notice(f"computing on {describe_device(next(purifier.parameters()).device)} in {purifier.how}{how}", quiet=quiet)
    return purifier, loaded


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
