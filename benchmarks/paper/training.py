"""Training ComDefend for a small budget, once: what a folder holds is not trained again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from comdefend_cli.data.sources import Dataset
from comdefend_cli.network.registry import load_weights
from comdefend_cli.network.weight_file import Weights, save_weights
from comdefend_cli.runtime.device import resolve_device
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.purifier import PurifierTrainer


def trained(config: TrainConfig, dataset: Dataset, device: str, folder: Path, images: int = 200) -> Weights:
    """The weights of that run from `folder`, trained, measured on so many test images and put there if need be.

    Raises:
        TrainingError: it collapsed.
        ComdefendError: the file cannot be written or read.
    """
    path = folder / f"{stem(config)}.safetensors"
    if not path.exists():
        trainer = PurifierTrainer(config, dataset, resolve_device(device))
        for report in trainer.run(measure_every=max(1, config.steps // 4)):
            if report.measured is not None:
                done = f"step {report.step} of {config.steps}: {report.measured:.2f} dB, {report.images_per_second:.1f} images/s"
                print(f"{path.stem}, {done}", file=sys.stderr, flush=True)
        measured = trainer.measure(images)
        save_weights(path, trainer.model, {**asdict(config), **measured})
    return load_weights(str(path))


def stem(config: TrainConfig) -> str:
    """A file's name, without ending, that says the settings in which runs of this folder differ."""
    run = f"{config.steps}x{config.batch_size}-{config.precision}-seed{config.seed}"
    return f"{config.bits}bit-lambda{config.penalty:g}-phi{config.noise_std:g}-{run}"
