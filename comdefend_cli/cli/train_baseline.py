"""`comdefend train-baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.preparation import fetch_dataset, refuse_tensor_file
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.baseline import BaselineTrainer
    from comdefend_cli.training.config import BaselineConfig

KINDS = ("pixelcnn", "hgd")
#: Steps and images a step where nothing is said: about 7 minutes each on one core of an AMD EPYC (Zen 4), in bfloat16.
STEPS = {"pixelcnn": 4000, "hgd": 600}
BATCH_SIZE = {"pixelcnn": 8, "hgd": 64}


@console.command
def train_baseline(
    kind: Annotated[str, typer.Argument(metavar="pixelcnn|hgd", help="pixelcnn: the network of PixelDefend. hgd: the guided denoiser.")],
    data: Annotated[
        str, typer.Option("--data", metavar="NAME|DIR", help="cifar10, fashion-mnist, mnist, or a folder of images (random crops).")
    ],
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the official files of NAME are, or go when they are downloaded.")
    ] = Path("data"),
    out: Annotated[Path | None, typer.Option("--out", help="The weight file to write.", show_default="KIND.safetensors")] = None,
    classifier: Annotated[
        str | None,
        typer.Option("--classifier", metavar="FILE|NAME|MODULE:FUNCTION", help="For hgd: the classifier that guides it and is attacked."),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", min=8, help="Side of the crops of a folder: for hgd as --classifier expects.", show_default="32"),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default="4000 pixelcnn, 600 hgd")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step.", show_default="8 pixelcnn, 64 hgd")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the initial weights, the batches and the attacks.")] = 0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 0.02,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32, or bfloat16 for mixed precision.")] = "auto",
    device: options.Device = "auto",
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the network of another defence, for `comdefend evaluate` to compare with.

    pixelcnn learns clean images; hgd learns to undo attacks on --classifier.
    """
    from comdefend_cli.cli.train import resolve_training_precision
    from comdefend_cli.data.datasets import DATASETS
    from comdefend_cli.runtime.device import describe_device, resolve_device
    from comdefend_cli.runtime.machine import limit_threads
    from comdefend_cli.training.config import BaselineConfig

    if kind not in KINDS:
        raise UsageError(f"unknown network {kind!r}: use {' or '.join(KINDS)}")
    if (kind == "hgd") != (classifier is not None):
        raise UsageError("hgd needs --classifier" if kind == "hgd" else "--classifier is for hgd only")
    if crop and data in DATASETS:
        raise UsageError(f"--crop is for folders of images; those of {data} are whole")
    out = out or Path(f"{kind}.safetensors")
    refuse_tensor_file(out, overwrite=overwrite)
    where = resolve_device(device)
    limit_threads()
    dataset = fetch_dataset(data, data_dir, download=not no_download, quiet=quiet, crop=crop)
    config = BaselineConfig(
        data=dataset.name,
        steps=steps or STEPS[kind],
        batch_size=batch_size or BATCH_SIZE[kind],
        seed=seed,
        lr=lr,
        precision=resolve_training_precision(precision, where),
    )
    if device == "auto":
        notice(f"training on {describe_device(where)} in {config.precision}", quiet=quiet)
    trainer = _trainer(config, dataset, where, classifier)
    _loop(trainer, quiet)
    _finish(trainer, out, overwrite=overwrite, quiet=quiet)


def _trainer(config: BaselineConfig, dataset: Dataset, where: torch.device, classifier: str | None) -> BaselineTrainer:
    """Of HGD where there is a classifier, else of a PixelCNN."""
    if classifier is None:
        from comdefend_cli.evaluate.defences.pixelcnn import PixelCNNTrainer

        return PixelCNNTrainer(config, dataset, where)
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.evaluate.defences.hgd import HGDTrainer

    guide = load_classifier(classifier, where, data=dataset.name)
    return HGDTrainer(config, dataset, where, guide.model, classifier_record={"name": guide.name, "sha256": guide.sha256})


def _loop(trainer: BaselineTrainer, quiet: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    steps = trainer.config.steps
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("training", total=steps)
        for report in trainer.run():
            text = f"loss {report.loss:.3f}  {report.images_per_second:.1f} images/s"
            bar.update(task, completed=report.step, description=text)
            if report.measured is not None and not quiet:
                err.print(f"step {report.step}/{steps}  {text}  {report.measured:.3f} {trainer.unit}")


def _finish(trainer: BaselineTrainer, out: Path, *, overwrite: bool, quiet: bool) -> None:
    """Measure the network and write its file."""
    from comdefend_cli.evaluate.defences.network_files import save_network

    record: dict[str, Any] = trainer.record()
    save_network(out, trainer.kind, trainer.model, record, overwrite=overwrite)
    notice(f"wrote {out}: {record['measured']:.3f} {trainer.unit}, on {record['test_images']} test images", quiet=quiet)
