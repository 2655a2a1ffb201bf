"""What the commands that purify have in common: the record of how they were computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comdefend_cli.inference.purifier import Purifier, Settings
    from comdefend_cli.network.weight_file import Weights


def settings_record(settings: Settings, device: str, precision: str, backend: str) -> dict[str, Any]:
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


def purifier_record(purifier: Purifier, weights: Weights) -> dict[str, Any]:
    """The same of a purifier of one image, with the noise that its weights chose."""
    from comdefend_cli.runtime.device import describe_device

    device = describe_device(next(purifier.parameters()).device)
    record = settings_record(purifier.settings, device, purifier.precision, purifier.backend)
    return {
        **record,
        "input_noise": purifier.input_noise(weights.header.architecture.channels),
        "weights": weights.name,
        "weights_sha256": weights.sha256,
    }
