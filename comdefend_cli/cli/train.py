"""`comdefend train`."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.trainer import Report, Trainer

#: Test images that PSNR is measured on for the weight file's header.
FINAL_IMAGES = 5000
#: Bytes that must be free: two checkpoints (the old one stays until the new one is whole) and what a run leaves.
ROOM = 40 * 2**20


@console.command
def train(
    data: Annotated[
        str, typer.Option("--data", metavar="NAME|DIR", help="cifar10, fashion-mnist, mnist, or a folder of images (random crops).")
    ],
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the official files of NAME are, or go when they are downloaded.", **options.UNCHECKED)
    ] = Path("data"),
    out: Annotated[Path, typer.Option("--out", help="The weight file to write.", **options.UNCHECKED)] = Path("comdefend.safetensors"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default="3200")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.0, help="Passes over the data, in place of --steps.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step, over all processes.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the initial weights, the batches and the noise.")] = 0,
    bits: Annotated[int, typer.Option("--bits", help="Code bits a pixel: 4, 8, 10, 12, 14 or 16.")] = 12,
    penalty: Annotated[float, typer.Option("--penalty", min=0.0, help="Lambda of eq. 1: weight of the code's mean square.")] = 1e-4,
    noise_std: Annotated[float, typer.Option("--noise-std", min=0.0, help="Phi of section 3.5: noise on the logits.")] = 20.0,
    input_noise: Annotated[
        float,
        typer.Option("--input-noise", min=0.0, help="Most standard deviation of input noise, in 8-bit levels; 0: the paper."),
    ] = 0.0,
    input_noise_least: Annotated[
        float, typer.Option("--input-noise-least", min=0.0, help="Least standard deviation of input noise; each image draws its own.")
    ] = 0.0,
    inference_noise: Annotated[
        float,
        typer.Option(
            "--inference-noise",
            min=0.0,
            max=255.0,
            help="Noise that purify puts on images before these weights, in 8-bit levels.",
        ),
    ] = 0.0,
    features: Annotated[
        str | None,
        typer.Option("--features", metavar="CLASSIFIER", help="A classifier of train-classifier, whose features are to be kept."),
    ] = None,
    feature_weight: Annotated[float, typer.Option("--feature-weight", min=0.0, help="Of the distance of these features.")] = 0.01,
    optimizer: Annotated[str, typer.Option("--optimizer", metavar="muon|adam", help="adam is the paper's.")] = "muon",
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="0.02 for muon, 0.001 for adam")] = None,
    lr_end: Annotated[float, typer.Option("--lr-end", help="Last learning rate as a share of the peak; it falls exponentially.")] = 0.02,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps in which the learning rate rises.")] = 50,
    init: Annotated[str | None, typer.Option("--init", metavar="NAME|PATH", help="Weights to start from, in place of new ones.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32, or bfloat16 for mixed precision.")] = "auto",
    device: options.Device = "auto",
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")] = 500,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Steps between measurements of PSNR.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside --out.")] = False,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train ComDefend on clean images.

    Beside --out OUT.safetensors it writes OUT.json (the log), OUT-curves.png, OUT-pictures.png, and OUT.checkpoint while it runs.
    Under torchrun, the processes share each batch.
    """
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.imaging.reading import lift_pillow_limit
    from comdefend_cli.network.registry import load_weights
    from comdefend_cli.runtime.device import describe_device, resolve_device
    from comdefend_cli.runtime.machine import limit_threads
    from comdefend_cli.training.config import TrainConfig
    from comdefend_cli.training.distributed import process_group, together
    from comdefend_cli.training.trainer import Trainer, load_checkpoint

    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs both say how long to train; give one of them")
    limit_threads()
    lift_pillow_limit()  # Of a folder of images, each has the limit that it has in `purify`.
    checkpoint = out.with_suffix(".checkpoint")
    with process_group(resolve_device(device)) as (where, rank), _one_voice(rank):
        quiet = quiet or rank > 0
        with together():  # Only the first process looks: the others could take its fresh checkpoint for an old one.
            if rank == 0:
                overwrite = _refuse_outputs(out, checkpoint, overwrite=overwrite, resume=resume)
        dataset = _dataset(data, data_dir, rank, download=not no_download, quiet=quiet)
        with together():
            start = load_weights(init) if init else None
            seen = load_classifier(features, data=dataset.name) if features else None
            if seen is not None and not seen.sha256:
                raise UsageError(f"{features}: --features takes a classifier that comdefend train-classifier made")
            config = TrainConfig(
                data=dataset.name,
                steps=_steps(steps, epochs, len(dataset.train), batch_size),
                batch_size=batch_size,
                seed=seed,
                bits=bits,
                channels=dataset.train.channels,
                penalty=penalty,
                noise_std=noise_std,
                input_noise=input_noise,
                input_noise_least=input_noise_least,
                inference_noise=inference_noise,
                features=seen.sha256 if seen else "",
                feature_weight=feature_weight,
                optimizer=optimizer,
                lr=lr,
                lr_end=lr_end,
                warmup=warmup,
                precision=resolve_training_precision(precision, where),
                init=start.sha256 if start else "",
            )
            trainer = Trainer(config, dataset, where, start=start.model if start else None, features=seen.model if seen else None)
        if device == "auto" or precision == "auto":
            notice(f"training on {describe_device(where)} in {config.precision}", quiet=quiet)
        history: list[Report] = []
        if resume:
            with together():
                history = load_checkpoint(checkpoint, trainer)
            notice(f"going on after step {trainer.step_done}", quiet=quiet)
        _loop(trainer, history, checkpoint, checkpoint_every, validate_every, quiet)
        if rank == 0:
            _finish(trainer, dataset, history, out, overwrite=overwrite, quiet=quiet)
            checkpoint.unlink(missing_ok=True)


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


def _refuse_outputs(out: Path, checkpoint: Path, *, overwrite: bool, resume: bool) -> bool:
    """Find out before hours of training what would fail after them; returns whether outputs may be replaced."""
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder
    from comdefend_cli.training.trainer import checkpoint_is_final

    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a weight file ends in .safetensors")
    if resume and out.exists() and not checkpoint.exists():
        raise UsageError(f"{out}: this run is complete, nothing is left to resume")
    # Outputs beside a final checkpoint are this run's own: it was cut off while it wrote them.
    overwrite = overwrite or (resume and checkpoint_is_final(checkpoint))
    for path in _outputs(out).values():
        refuse_existing(path, overwrite=overwrite)
    if not resume and not overwrite and checkpoint.exists():
        raise UsageError(f"{checkpoint}: is the checkpoint of an unfinished run; go on with --resume, or replace it with --overwrite")
    refuse_unwritable_folder(out, room=ROOM)
    return overwrite


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


def resolve_training_precision(name: str, device: torch.device) -> str:
    """The precision's name for a training run; "auto" takes the fastest that the device computes natively and training knows.

    Raises:
        UsageError: the name is unknown, or the device does not compute in it.
    """
    from comdefend_cli.runtime.device import dtype_name, resolve_precision

    chosen = dtype_name(resolve_precision(name, device))
    # Older GPUs are fastest in float16, which does not hold this loss's gradients.
    return "float32" if name == "auto" and chosen == "float16" else chosen


def _steps(steps: int | None, epochs: float | None, images: int, batch_size: int) -> int:
    from comdefend_cli.training.config import TrainConfig

    if epochs is None:
        return TrainConfig.steps if steps is None else steps
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs must be above 0, not {epochs}")
    return math.ceil(epochs * images / batch_size)


def _loop(trainer: Trainer, history: list[Report], checkpoint: Path, checkpoint_every: int, validate_every: int, quiet: bool) -> None:
    """Train to the end; write checkpoints at intervals, at the end and on Ctrl-C."""
    if trainer.step_done == 0:
        _save(checkpoint, trainer, history)

    def stop(number: int) -> None:  # Also under torchrun, which passes each signal on to its processes once.
        trainer.stop_asked = True

    with _live(trainer, history, quiet) as show, console.interruptible(stop):
        for report in trainer.run(validate_every=validate_every):
            history.append(report)
            show(report)
            if report.step % checkpoint_every == 0 or report.step == trainer.config.steps or trainer.stopping:
                _save(checkpoint, trainer, history)
    if trainer.stopping:
        notice(f"stopped after step {trainer.step_done}; the same command with --resume goes on from {checkpoint}", quiet=quiet)
        raise KeyboardInterrupt


def _save(checkpoint: Path, trainer: Trainer, history: list[Report]) -> None:
    from comdefend_cli.training.distributed import together
    from comdefend_cli.training.trainer import save_checkpoint

    with together():
        if trainer.rank == 0:
            save_checkpoint(checkpoint, trainer, history)


@contextmanager
def _live(trainer: Trainer, history: list[Report], quiet: bool) -> Iterator[Callable[[Report], None]]:
    """A function that shows reports: a live line on a terminal, now and then a line elsewhere."""
    if quiet:
        yield lambda report: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("training", total=trainer.config.steps, completed=trainer.step_done)
        psnr = next((f"{report.psnr:.2f} dB" for report in reversed(history) if report.psnr is not None), "-")

        def show(report: Report) -> None:
            nonlocal psnr
            psnr = psnr if report.psnr is None else f"{report.psnr:.2f} dB"
            text = f"loss {report.loss:.5f}  PSNR {psnr}  {report.images_per_second:.1f} images/s"
            progress.update(task, completed=report.step, description=text)
            if report.psnr is not None:
                left = (trainer.config.steps - report.step) * trainer.config.batch_size / report.images_per_second
                shown = f"  {timedelta(seconds=round(left))} left"
                err.print(f"step {report.step}/{trainer.config.steps}  {text}  logits {report.logit_rms:.0f}{shown}")

        yield show


def _finish(trainer: Trainer, dataset: Dataset, history: list[Report], out: Path, *, overwrite: bool, quiet: bool) -> None:
    """Measure the trained networks and write all that a run leaves."""
    from comdefend_cli.imaging.conversion import from_pillow
    from comdefend_cli.imaging.writing import write_image
    from comdefend_cli.network.weight_file import save_weights
    from comdefend_cli.runtime.files import write_atomically
    from comdefend_cli.training.plots import curves, reconstructions

    notice(f"measuring on {min(FINAL_IMAGES, len(dataset.test))} test images", quiet=quiet)
    training = _training(trainer, dataset)
    paths = _outputs(out)
    sha256 = save_weights(paths["weights"], trainer.model, training, overwrite=overwrite)
    log = {"training": training, "sha256": sha256, "machine": _machine(trainer), "history": [asdict(report) for report in history]}
    write_atomically(paths["log"], (json.dumps(log, indent=1) + "\n").encode(), overwrite=overwrite)
    write_image(paths["curves"], from_pillow(curves(history)), overwrite=overwrite)
    write_image(paths["pictures"], reconstructions(trainer.model, dataset.test.pixels[:12]), overwrite=overwrite)
    said = f"{training['psnr_db']:.2f} dB, SSIM {training['ssim']:.4f} on {training['test_images']} test images"
    notice(f"wrote {out}: {said}", quiet=quiet)


def _training(trainer: Trainer, dataset: Dataset) -> dict[str, Any]:
    """How the weights came to be, for the weight file's header."""
    import torch

    from comdefend_cli import __version__

    return {
        **asdict(trainer.config),
        "lr": trainer.config.peak_lr,
        "train_images": len(dataset.train),
        "comdefend_version": __version__,
        "torch_version": torch.__version__,
        **trainer.measure(FINAL_IMAGES),
    }


def _machine(trainer: Trainer) -> dict[str, Any]:
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import count_cores

    device = describe_device(trainer.device)
    return {"platform": platform.platform(), "cpus": count_cores(), "device": device, "processes": trainer.processes}
