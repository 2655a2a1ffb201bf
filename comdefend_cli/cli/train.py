"""`comdefend train`."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.cli.training import make_config, refuse_idle, refuse_outputs, tell_device, train_to_end
from comdefend_cli.errors import UsageError
from comdefend_cli.training.config import DEFAULT_LR, TrainConfig

if TYPE_CHECKING:
    import torch

    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.history import History
    from comdefend_cli.training.purifier import PurifierTrainer

#: Bytes that must be free: two checkpoints (the old one stays until the new one is whole) and what a run leaves.
ROOM = 40 * 2**20


_RATES = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LR.items())


@console.command
def train(
    context: typer.Context,
    data: options.Data,
    data_dir: options.DataDir = Path("data"),
    out: Annotated[Path, typer.Option("--out", help="The weight file to write.", **options.UNCHECKED)] = Path("comdefend.safetensors"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default=str(TrainConfig.steps))] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.0, help="Passes over the data, in place of --steps.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step, over all processes.")] = TrainConfig.batch_size,
    seed: options.TrainingSeed = TrainConfig.seed,
    bits: Annotated[int, typer.Option("--bits", help="Code bits a pixel: 4, 8, 10, 12, 14 or 16.")] = TrainConfig.bits,
    penalty: Annotated[
        float, typer.Option("--penalty", min=0.0, help="Lambda of eq. 1: weight of the code's mean square.")
    ] = TrainConfig.penalty,
    noise_std: Annotated[
        float, typer.Option("--noise-std", min=0.0, help="Phi of section 3.5: standard deviation of the noise on the logits.")
    ] = TrainConfig.noise_std,
    input_noise: Annotated[
        float, typer.Option("--input-noise", min=0.0, help="Most standard deviation of input noise, in 8-bit levels; 0 is the paper's.")
    ] = TrainConfig.input_noise,
    input_noise_min: Annotated[
        float, typer.Option("--input-noise-min", min=0.0, help="Least standard deviation of input noise; each image draws its own.")
    ] = TrainConfig.input_noise_min,
    input_noise_least: Annotated[
        float | None, typer.Option("--input-noise-least", min=0.0, hidden=True, help="The old spelling of --input-noise-min.")
    ] = None,
    inference_noise: Annotated[
        float,
        typer.Option("--inference-noise", min=0.0, max=255.0, help="Noise that images get before these weights, in 8-bit levels."),
    ] = TrainConfig.inference_noise,
    features: Annotated[
        str | None,
        typer.Option("--features", metavar="CLASSIFIER", help="A classifier of train-classifier, whose features are to be kept."),
    ] = None,
    feature_weight: Annotated[
        float, typer.Option("--feature-weight", min=0.0, help="Weight of the distance of these features in the loss.")
    ] = TrainConfig.feature_weight,
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="muon|adam", help="What takes the steps; adam is the paper's.")
    ] = TrainConfig.optimizer,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Peak learning rate.", show_default=_RATES),
    ] = TrainConfig.lr,
    lr_end: Annotated[
        float, typer.Option("--lr-end", help="Last learning rate as a share of the peak; it falls exponentially.")
    ] = TrainConfig.lr_end,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps in which the learning rate rises.")] = TrainConfig.warmup,
    init: Annotated[str | None, typer.Option("--init", metavar="NAME|PATH", help="Weights to start from, in place of new ones.")] = None,
    precision: options.TrainingPrecision = "auto",
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 500,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Steps between measurements of PSNR.")] = 100,
    resume: options.Resume = False,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train ComDefend on clean images.

    Beside --out OUT.safetensors it writes OUT.json (the log), OUT-curves.png, OUT-pictures.png, and OUT.checkpoint while it runs.
    Under torchrun, the processes share each batch.
    """
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.machine import limit_threads
    from comdefend_cli.training.distributed import process_group, together
    from comdefend_cli.training.purifier import PurifierTrainer

    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs both say how long to train; give one of them")
    if not features:
        refuse_idle(context, ["feature_weight"], "--features")
    limit_threads()
    paths, checkpoint = _outputs(out), out.with_suffix(".checkpoint")
    with process_group(resolve_device(device)) as (where, rank), _one_voice(rank):
        quiet = quiet or rank > 0
        with together():  # Only the first process looks: the others could take its fresh checkpoint for an old one.
            if rank == 0:
                overwrite = refuse_outputs([*paths.values()], PurifierTrainer.command, overwrite=overwrite, resume=resume, room=ROOM)
        dataset = _dataset(data, data_dir, rank, download=not no_download, quiet=quiet)
        with together():
            trainer = _trainer(context.params, dataset, where)
        tell_device(context.params, where, trainer.config.precision, quiet=quiet)
        history = train_to_end(
            trainer, checkpoint, resume=resume, checkpoint_every=checkpoint_every, measure_every=validate_every, quiet=quiet
        )
        if rank == 0:
            _finish(trainer, history, paths, overwrite=overwrite, quiet=quiet)
            checkpoint.unlink(missing_ok=True)


def _trainer(chosen: Mapping[str, Any], dataset: Dataset, where: torch.device) -> PurifierTrainer:
    """The run that the options ask for."""
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.network.registry import load_weights
    from comdefend_cli.training.purifier import PurifierTrainer

    features = chosen["features"]
    start = load_weights(chosen["init"]) if chosen["init"] else None
    seen = load_classifier(features, data=dataset.name) if features else None
    if seen is not None and not seen.sha256:
        raise UsageError(f"{features}: --features takes a classifier that comdefend train-classifier made")
    if chosen["input_noise_least"] is not None:
        chosen = {**chosen, "input_noise_min": chosen["input_noise_least"]}
    config = make_config(
        TrainConfig,
        chosen,
        where,
        data=dataset.name,
        steps=_steps(chosen["steps"], chosen["epochs"], len(dataset.train), chosen["batch_size"]),
        channels=dataset.train.channels,
        features=seen.sha256 if seen else "",
        init=start.sha256 if start else "",
    )
    return PurifierTrainer(config, dataset, where, start=start.model if start else None, features=seen.model if seen else None)


@contextmanager
def _one_voice(rank: int) -> Iterator[None]:
    """Under torchrun, end quietly where another process tells the person why."""
    from comdefend_cli.training.distributed import PeerError

    try:
        yield
    except PeerError as error:
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        if rank > 0:
            raise typer.Exit(console.INTERRUPTED) from None
        raise


def _outputs(out: Path) -> dict[str, Path]:
    stem = out.with_suffix("")
    return {
        "weights": out,
        "log": out.with_suffix(".json"),
        "curves": stem.with_name(f"{stem.name}-curves.png"),
        "pictures": stem.with_name(f"{stem.name}-pictures.png"),
    }


def _dataset(data: str, data_dir: Path, rank: int, *, download: bool, quiet: bool) -> Dataset:
    """The data set; the first process goes ahead, so that only it downloads."""
    from comdefend_cli.training.distributed import together

    loaded: Dataset | None = None
    for mine in (rank == 0, rank > 0):
        with together():
            if mine:
                loaded = fetch_dataset(data, data_dir, download=download, quiet=quiet)
    assert loaded is not None  # One of the two turns was this process's.
    return loaded


def _steps(steps: int | None, epochs: float | None, images: int, batch_size: int) -> int:
    if epochs is None:
        return TrainConfig.steps if steps is None else steps
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs must be above 0, not {epochs}")
    return math.ceil(epochs * images / batch_size)


def _finish(trainer: PurifierTrainer, history: History, paths: dict[str, Path], *, overwrite: bool, quiet: bool) -> None:
    """Measure the trained networks and write all that a run leaves."""
    from comdefend_cli.imaging.conversion import from_pillow
    from comdefend_cli.imaging.writing import write_image
    from comdefend_cli.network.weight_file import save_weights
    from comdefend_cli.runtime.files import write_atomically
    from comdefend_cli.training.plots import draw_curves, draw_reconstructions
    from comdefend_cli.training.purifier import FINAL_IMAGES

    notice(f"measuring on {min(FINAL_IMAGES, len(trainer.dataset.test))} test images", quiet=quiet)
    training = trainer.record()
    sha256 = save_weights(paths["weights"], trainer.model, training, overwrite=overwrite)
    log = {"training": training, "sha256": sha256, "machine": _machine(trainer), "history": list(history.records())}
    write_atomically(paths["log"], (json.dumps(log, indent=1) + "\n").encode(), overwrite=overwrite)
    write_image(paths["curves"], from_pillow(draw_curves(history)), overwrite=overwrite)
    write_image(paths["pictures"], draw_reconstructions(trainer.model, trainer.dataset.test.pixels[:12]), overwrite=overwrite)
    said = f"{training['psnr_db']:.2f} dB, SSIM {training['ssim']:.4f} on {training['test_images']} test images"
    notice(f"wrote {paths['weights']}: {said}", quiet=quiet)


def _machine(trainer: PurifierTrainer) -> dict[str, Any]:
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import count_cores

    device = describe_device(trainer.device)
    return {"platform": platform.platform(), "cpus": count_cores(), "device": device, "processes": trainer.processes}
