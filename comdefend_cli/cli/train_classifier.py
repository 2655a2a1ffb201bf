"""`comdefend train-classifier`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.classifier import ClassifierReport, ClassifierTrainer
    from comdefend_cli.training.config import ClassifierConfig


@console.command
def train_classifier(
    data: Annotated[str, typer.Option("--data", metavar="NAME", help="cifar10, fashion-mnist or mnist.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Where the official files of NAME are, or go when they are downloaded.")] = (
        Path("data")
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="The classifier file to write.", show_default="classifiers/ARCH-DATA.safetensors")
    ] = None,
    arch: Annotated[str, typer.Option("--arch", metavar="small|medium|resnet18|resnet50", help="small and medium are for CPUs.")] = "small",
    epochs: Annotated[float, typer.Option("--epochs", min=0.0, help="Passes over the data.")] = 8.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Images a step.")] = 256,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, batches and augmentation.")] = 0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 0.02,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", min=0.0, help="Of the kernels: the share, times the learning rate, that they lose a step.")
    ] = 0.1,
    purify: Annotated[
        str | None,
        typer.Option(
            "--purify", metavar="NAME|PATH", help="Learn from images purified with these ComDefend weights (4.4.2), and measure on such."
        ),
    ] = None,
    input_noise: Annotated[
        float,
        typer.Option(
            "--input-noise", metavar="S", help="Learn from each image a second time with noise of up to S 8-bit levels, before --purify."
        ),
    ] = 0.0,
    cutout: Annotated[
        int, typer.Option("--cutout", min=0, help="Hide a square of so many pixels a side in each image (DeVries and Taylor, 2017).")
    ] = 0,
    adversarial: Annotated[
        str | None, typer.Option("--adversarial", metavar="fgsm|bim", help="Half of each batch is attacked so (Kurakin et al., 2017).")
    ] = None,
    adversarial_epsilon: Annotated[
        float, typer.Option("--adversarial-epsilon", help="Most L-infinity distance of these, in 8-bit levels.")
    ] = 8.0,
    adversarial_steps: Annotated[int, typer.Option("--adversarial-steps", min=1, help="Of bim.")] = 4,
    label_smoothing: Annotated[
        float, typer.Option("--label-smoothing", min=0.0, help="Share of a label's weight that goes to all classes alike.")
    ] = 0.0,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="FILE", help="A classifier to go on from, in place of a new one.", **options.UNCHECKED)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32, or bfloat16 for mixed precision.")] = "auto",
    device: options.Device = "auto",
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside --out.")] = False,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a reference classifier for `comdefend evaluate`."""
    from comdefend_cli.classifiers.loading import default_path, load_classifier_file
    from comdefend_cli.cli.train import resolve_training_precision
    from comdefend_cli.data.labelled import CLASSES
    from comdefend_cli.network.registry import load_weights
    from comdefend_cli.runtime.device import describe_device, resolve_device
    from comdefend_cli.runtime.machine import limit_threads
    from comdefend_cli.training.checkpoint import load_checkpoint
    from comdefend_cli.training.classifier import ClassifierReport, ClassifierTrainer
    from comdefend_cli.training.config import ClassifierConfig

    if data not in CLASSES:
        raise UsageError(f"unknown data set {data!r}: a classifier learns from {', '.join(CLASSES)}")
    where = resolve_device(device)
    limit_threads()
    purifying = load_weights(purify) if purify else None
    start = load_classifier_file(init) if init else None
    config = ClassifierConfig(
        data=data,
        arch=arch,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        lr=lr,
        weight_decay=weight_decay,
        purify=purifying.sha256 if purifying else "",
        input_noise=input_noise,
        cutout=cutout,
        adversarial=adversarial or "",
        adversarial_epsilon=adversarial_epsilon,
        adversarial_steps=adversarial_steps,
        label_smoothing=label_smoothing,
        precision=resolve_training_precision(precision, where),
        init=start.sha256 if start else "",
    )
    out = out or default_path(arch, data)
    checkpoint = out.with_suffix(".checkpoint")
    _refuse_outputs(out, checkpoint, overwrite=overwrite, resume=resume)
    if device == "auto":
        notice(f"training on {describe_device(where)} in {config.precision}", quiet=quiet)
    dataset = _dataset(config, data_dir, purifying, where, download=not no_download, quiet=quiet)
    trainer = ClassifierTrainer(config, dataset, CLASSES[data], where, start)
    history: list[ClassifierReport] = []
    if resume:
        history = [ClassifierReport(**report) for report in load_checkpoint(checkpoint, trainer, "comdefend train-classifier")]
        notice(f"going on after step {trainer.step_done}", quiet=quiet)
    _loop(trainer, history, checkpoint, checkpoint_every, quiet)
    _finish(trainer, dataset, out, overwrite=overwrite, quiet=quiet)
    checkpoint.unlink(missing_ok=True)


def _refuse_outputs(out: Path, checkpoint: Path, *, overwrite: bool, resume: bool) -> None:
    from comdefend_cli.errors import ComdefendError, reason
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a classifier file ends in .safetensors")
    refuse_existing(out, overwrite=overwrite)
    if not resume and not overwrite and checkpoint.exists():
        raise UsageError(f"{checkpoint}: is the checkpoint of an unfinished run; go on with --resume, or replace it with --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{out.parent}: cannot make this folder: {reason(error)}") from error
    refuse_unwritable_folder(out)


def _dataset(config: ClassifierConfig, data_dir: Path, purifying: object, where: torch.device, *, download: bool, quiet: bool) -> Dataset:
    """The data set, its noisy copies, and all of it once through the purifier, where these are asked for."""
    import torch

    from comdefend_cli.data.sources import ImageArray
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.weight_file import Weights
    from comdefend_cli.training.augmentation import noisy, purify_images

    dataset = fetch_dataset(config.data, data_dir, download=download, quiet=quiet)
    train, test = dataset.train, dataset.test
    assert isinstance(train, ImageArray)  # Of the named data sets all are.
    if config.input_noise:
        pixels = torch.cat([train.pixels, noisy(train.pixels, config.input_noise, config.seed)])
        train = ImageArray(pixels, torch.cat([train.labels, train.labels]))
    if isinstance(purifying, Weights):
        purifier = Purifier.from_weights([purifying], device=where)
        with _counting("purifying the images", len(train) + len(test), quiet) as advance:
            train, test = (replace(part, pixels=purify_images(purifier, part.pixels, advance)) for part in (train, test))
    return replace(dataset, train=train, test=test)


@contextmanager
def _counting(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    notice(what, quiet=quiet or err.is_terminal)
    if quiet or not err.is_terminal:
        yield None
        return
    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _loop(trainer: ClassifierTrainer, history: list[ClassifierReport], checkpoint: Path, every: int, quiet: bool) -> None:
    """Train to the end; write checkpoints at intervals and on Ctrl-C."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from comdefend_cli.training.checkpoint import save_checkpoint

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop: list[int] = []
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar, console.interruptible(stop.append):
        task = bar.add_task("training", total=trainer.steps, completed=trainer.step_done)
        for report in trainer.run():
            history.append(report)
            text = f"loss {report.loss:.3f}  {report.images_per_second:.0f} images/s"
            bar.update(task, completed=report.step, description=text)
            if report.accuracy is not None and not quiet:
                err.print(f"step {report.step}/{trainer.steps}  {text}  {report.accuracy:.2f} % of test images right")
            if report.step % every == 0 or stop:
                save_checkpoint(checkpoint, trainer, history)
            if stop:
                break
    if stop and trainer.step_done < trainer.steps:
        notice(f"stopped after step {trainer.step_done}; the same command with --resume goes on from {checkpoint}", quiet=quiet)
        raise KeyboardInterrupt


def _finish(trainer: ClassifierTrainer, dataset: Dataset, out: Path, *, overwrite: bool, quiet: bool) -> None:
    from comdefend_cli import __version__
    from comdefend_cli.classifiers.loading import save_classifier

    accuracy = round(trainer.measure(), 2)
    record = {**trainer.training_record(), "comdefend_version": __version__, "accuracy": accuracy, "test_images": len(dataset.test)}
    save_classifier(out, trainer.model, replace(trainer.header, training=record), overwrite=overwrite)
    notice(f"wrote {out}: {accuracy:.2f} % of {len(dataset.test)} test images right", quiet=quiet)
