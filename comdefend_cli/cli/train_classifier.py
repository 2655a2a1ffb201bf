"""`comdefend train-classifier`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.epsilons import parse_epsilon
from comdefend_cli.cli.origin import load_told
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.cli.training import hold_outputs, make_config, refuse_idle, refuse_outputs, tell_device, train_to_end
from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.training.classifier_config import ClassifierConfig

if TYPE_CHECKING:
    import torch

    from comdefend_cli.classifiers.loading import Classifier
    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.weight_file import Weights
    from comdefend_cli.training.classifier import ClassifierTrainer


@console.command
def train_classifier(
    context: typer.Context,
    data: Annotated[str, typer.Option("--data", metavar="NAME", help="Images with labels: cifar10, fashion-mnist or mnist.")],
    data_dir: options.DataDir = Path("data"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The classifier file to write.", show_default="classifiers/ARCH-DATA.safetensors")
    ] = None,
    arch: Annotated[
        str, typer.Option("--arch", metavar="small|medium|resnet18|resnet50", help="The network; small and medium are for CPUs.")
    ] = ClassifierConfig.arch,
    epochs: Annotated[float, typer.Option("--epochs", min=0.0, help="Passes over the data.")] = ClassifierConfig.epochs,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Images a step.")] = ClassifierConfig.batch_size,
    seed: options.TrainingSeed = ClassifierConfig.seed,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = ClassifierConfig.lr,
    weight_decay: Annotated[
        float,
        typer.Option("--weight-decay", min=0.0, help="Decay of the kernels: the share, times the learning rate, that they lose a step."),
    ] = ClassifierConfig.weight_decay,
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
    ] = ClassifierConfig.input_noise,
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma",
            min=0.0,
            max=2.0,
            help="For `comdefend certify`: learn from copies under fresh noise of this standard deviation, pixels in [0, 1].",
        ),
    ] = ClassifierConfig.sigma,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Such copies of each image.")] = ClassifierConfig.draws,
    consistency: Annotated[
        float,
        typer.Option("--consistency", min=0.0, help="Weight of how unlike their answers are (Jeong and Shin, 2020)."),
    ] = ClassifierConfig.consistency,
    cutout: Annotated[
        int, typer.Option("--cutout", min=0, help="Hide a square of so many pixels a side in each image (DeVries and Taylor, 2017).")
    ] = ClassifierConfig.cutout,
    adversarial: Annotated[
        str | None, typer.Option("--adversarial", metavar="fgsm|bim", help="Half of each batch is attacked so (Kurakin et al., 2017).")
    ] = None,
    adversarial_epsilon: Annotated[str, typer.Option("--adversarial-epsilon", help="Most L-infinity distance of these.")] = say_epsilon(
        ClassifierConfig.adversarial_epsilon
    ),
    adversarial_steps: Annotated[
        int, typer.Option("--adversarial-steps", min=1, help="Steps of bim.")
    ] = ClassifierConfig.adversarial_steps,
    label_smoothing: Annotated[
        float, typer.Option("--label-smoothing", min=0.0, help="Share of a label's weight that goes to all classes alike.")
    ] = ClassifierConfig.label_smoothing,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="FILE", help="A classifier to go on from, in place of a new one.", **options.UNCHECKED)
    ] = None,
    precision: options.TrainingPrecision = "auto",
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 200,
    resume: options.Resume = False,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a reference classifier for `comdefend evaluate`.

    While it runs, a checkpoint is beside --out.
    """
    from comdefend_cli.classifiers.loading import default_path, load_classifier_file
    from comdefend_cli.data.labelled import CLASSES
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.machine import limit_threads
    from comdefend_cli.training.classifier import ClassifierTrainer

    if data not in CLASSES:
        raise UsageError(f"unknown data set {data!r}: a classifier learns from {', '.join(CLASSES)}")
    if not adversarial:
        refuse_idle(context, ["adversarial_epsilon", "adversarial_steps"], "--adversarial")
    if adversarial != "bim":
        refuse_idle(context, ["adversarial_steps"], "--adversarial bim")
    if not sigma:
        refuse_idle(context, ["draws", "consistency"], "--sigma")
    where = resolve_device(device)
    limit_threads()
    purifying = load_told(purify, quiet=quiet) if purify else None
    start = load_classifier_file(init) if init else None
    hashes = {"purify": purifying.sha256 if purifying else "", "init": start.sha256 if start else ""}
    epsilon = parse_epsilon("--adversarial-epsilon", adversarial_epsilon)
    config = make_config(ClassifierConfig, context.params, where, adversarial=adversarial or "", adversarial_epsilon=epsilon, **hashes)
    out = out or default_path(arch, data)
    _make_folder(out.parent)
    overwrite = refuse_outputs([out], ClassifierTrainer.command, overwrite=overwrite, resume=resume, what="a classifier file")
    with hold_outputs(out):
        tell_device(context.params, where, config.precision, quiet=quiet)
        trainer = _make_trainer(config, context.params, where, start, purifying)
        checkpoint = out.with_suffix(".checkpoint")
        train_to_end(trainer, checkpoint, resume=resume, checkpoint_every=checkpoint_every, quiet=quiet)
        _finish(trainer, out, overwrite=overwrite, quiet=quiet)
        checkpoint.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{folder}: cannot make this folder: {explain(error)}") from error


def _make_trainer(
    config: ClassifierConfig, chosen: Mapping[str, Any], where: torch.device, start: Classifier | None, purifying: Weights | None
) -> ClassifierTrainer:
    """The run that the options ask for, with its images."""
    from comdefend_cli.data.labelled import CLASSES
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.inference.settings import Settings
    from comdefend_cli.training.classifier import ClassifierTrainer
    from comdefend_cli.training.smoothing import SmoothedClassifierTrainer

    # Under the noise of `sigma` the purifier works in each step, without noise of its own.
    settings = Settings(input_noise=0.0 if config.sigma else None)
    purifier = Purifier.from_weights([purifying], device=where, settings=settings) if purifying else None
    once = None if config.sigma else purifier
    dataset = _dataset(config, chosen["data_dir"], once, download=not chosen["no_download"], quiet=chosen["quiet"])
    if config.sigma:
        return SmoothedClassifierTrainer(config, dataset, CLASSES[config.data], where, start, purifier=purifier)
    return ClassifierTrainer(config, dataset, CLASSES[config.data], where, start)


def _dataset(config: ClassifierConfig, data_dir: Path, purifier: Purifier | None, *, download: bool, quiet: bool) -> Dataset:
    """The data set, its noisy copies, and all of it once through the purifier, where these are asked for."""
    import torch

    from comdefend_cli.data.sources import ImageArray
    from comdefend_cli.training.augmentation import add_noise, purify_images

    dataset = fetch_dataset(config.data, data_dir, download=download, quiet=quiet)
    train, test = dataset.train, dataset.test
    assert isinstance(train, ImageArray)  # Of the named data sets all are.
    if config.input_noise:
        pixels = torch.cat([train.pixels, add_noise(train.pixels, config.input_noise, config.seed)])
        train = ImageArray(pixels, torch.cat([train.labels, train.labels]))
    if purifier is not None:
        with progress.show_images("purifying the images", len(train) + len(test), quiet=quiet) as advance:
            train, test = (replace(part, pixels=purify_images(purifier, part.pixels, advance)) for part in (train, test))
    return replace(dataset, train=train, test=test)


def _finish(trainer: ClassifierTrainer, out: Path, *, overwrite: bool, quiet: bool) -> None:
    """Measure the classifier and write its file."""
    from comdefend_cli.classifiers.loading import save_classifier

    with progress.show_waiting("measuring on the test images", quiet=quiet):
        record = trainer.record()
    save_classifier(out, trainer.model, replace(trainer.header, training=record), overwrite=overwrite)
    notice(f"wrote {out}: {record['accuracy']:.2f} {trainer.unit}, of {record['test_images']}", quiet=quiet)
