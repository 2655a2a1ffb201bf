"""What the commands that purify have in common: a bar of pixels, and the record of how they were computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli.console import err

if TYPE_CHECKING:
    from comdefend_cli.inference.purifier import Purifier, Settings
    from comdefend_cli.network.weight_file import Weights


@contextmanager
def pixel_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A function to be told of pixels done, which moves a bar on a terminal; None where none is shown."""
    if not (shown and err.is_terminal):
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("purifying"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("purifying", total=total)
        yield lambda pixels: bar.advance(task, pixels)


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
