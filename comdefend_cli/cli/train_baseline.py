"""`comdefend train-baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.cli.training import hold_outputs, make_config, refuse_outputs, tell_device, train_to_end
from comdefend_cli.errors import UsageError
from comdefend_cli.training.classifier_config import BaselineConfig

if TYPE_CHECKING:
    import torch

    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.baseline import BaselineTrainer

KINDS = ("pixelcnn", "hgd")
#: Steps and images a step where nothing is said: about 7 minutes each on one core of an AMD EPYC (Zen 4), in bfloat16.
STEPS = {"pixelcnn": 4000, "hgd": 600}
BATCH_SIZE = {"pixelcnn": 8, "hgd": 64}


def _by_kind(values: dict[str, int]) -> str:
    return ", ".join(f"{value} {kind}" for kind, value in values.items())


@console.command
def train_baseline(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="pixelcnn|hgd", help="Which network: pixelcnn, that of PixelDefend, or hgd, the guided denoiser.")
    ],
    data: options.Data,
    data_dir: options.DataDir = Path("data"),
    out: Annotated[Path | None, typer.Option("--out", help="The weight file to write.", show_default="KIND.safetensors")] = None,
    classifier: Annotated[
        str | None,
        typer.Option("--classifier", metavar="FILE|NAME|MODULE:FUNCTION", help="For hgd: the classifier that guides it and is attacked."),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", min=8, help="Side of the crops of a folder: for hgd as --classifier expects.", show_default="32"),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default=_by_kind(STEPS))] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step.", show_default=_by_kind(BATCH_SIZE))] = None,
    seed: options.TrainingSeed = BaselineConfig.seed,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = BaselineConfig.lr,
    precision: options.TrainingPrecision = "auto",
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 200,
    resume: options.Resume = False,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the network of another defence, for `comdefend evaluate` to compare with.

    pixelcnn learns clean images; hgd learns to undo attacks on --classifier. While it runs, a checkpoint is beside --out.
    """
    from comdefend_cli.data.datasets import DATASETS
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.machine import limit_threads

    if kind not in KINDS:
        raise UsageError(f"unknown network {kind!r}: use {' or '.join(KINDS)}")
    if (kind == "hgd") != (classifier is not None):
        raise UsageError("hgd needs --classifier" if kind == "hgd" else "--classifier is for hgd only")
    if crop and data in DATASETS:
        raise UsageError(f"--crop is for folders of images; those of {data} are whole")
    out = out or Path(f"{kind}.safetensors")
    overwrite = refuse_outputs([out], f"comdefend train-baseline {kind}", overwrite=overwrite, resume=resume)
    where = resolve_device(device)
    limit_threads()
    with hold_outputs(out):
        dataset = fetch_dataset(data, data_dir, download=not no_download, quiet=quiet, crop=crop)
        sizes = {"steps": steps or STEPS[kind], "batch_size": batch_size or BATCH_SIZE[kind]}
        config = make_config(BaselineConfig, context.params, where, data=dataset.name, **sizes)
        tell_device(context.params, where, config.precision, quiet=quiet)
        trainer = _trainer(config, dataset, where, classifier)
        checkpoint = out.with_suffix(".checkpoint")
        train_to_end(trainer, checkpoint, resume=resume, checkpoint_every=checkpoint_every, quiet=quiet)
        _finish(trainer, out, overwrite=overwrite, quiet=quiet)
        checkpoint.unlink(missing_ok=True)


def _trainer(config: BaselineConfig, dataset: Dataset, where: torch.device, classifier: str | None) -> BaselineTrainer:
    """Of HGD where there is a classifier, else of a PixelCNN."""
    if classifier is None:
        from comdefend_cli.evaluate.defences.pixelcnn import PixelCNNTrainer

        return PixelCNNTrainer(config, dataset, where)
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.evaluate.defences.hgd import HGDTrainer

    guide = load_classifier(classifier, where, data=dataset.name)
    return HGDTrainer(config, dataset, where, guide.model, classifier_record={"name": guide.name, "sha256": guide.sha256})


def _finish(trainer: BaselineTrainer, out: Path, *, overwrite: bool, quiet: bool) -> None:
    """Measure the network and write its file."""
    from comdefend_cli.evaluate.defences.network_files import save_network

    record = trainer.record()
    save_network(out, trainer.kind, trainer.model, record, overwrite=overwrite)
    notice(f"wrote {out}: {record['measured']:.3f} {trainer.unit}, on {record['test_images']} test images", quiet=quiet)
