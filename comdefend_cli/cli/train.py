"""`comdefend train`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.preparation import fetch_dataset
from comdefend_cli.cli.train_run import choose_networks, make_trainer, refuse_unused
from comdefend_cli.cli.training import hold_outputs, refuse_outputs, tell_device, train_to_end
from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.training.config import DEFAULT_LR, TrainConfig

if TYPE_CHECKING:
    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.training.history import History
    from comdefend_cli.training.purifier import PurifierTrainer

#: Bytes that must be free: two checkpoints (the old one stays until the new one is whole) and what a run leaves.
ROOM = 40 * 2**20


_RATES = ", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LR.items())


@console.command
def train(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="NAME|DIR", help="Clean images: cifar10, fashion-mnist, mnist, drawings, a folder; may repeat."),
    ],
    data_dir: options.DataDir = Path("data"),
    out: Annotated[Path, typer.Option("--out", help="The weight file to write.", **options.UNCHECKED)] = Path("comdefend.safetensors"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default=str(TrainConfig.steps))] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.0, help="Passes over the data, in place of --steps.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step, over all processes.")] = TrainConfig.batch_size,
    seed: options.TrainingSeed = TrainConfig.seed,
    crop: Annotated[int, typer.Option("--crop", help="Side of the crops of a folder's images, in pixels.")] = TrainConfig.crop,
    shrink: Annotated[
        int, typer.Option("--shrink", min=1, help="The most that these are made smaller, at random, before they are cropped.")
    ] = TrainConfig.shrink,
    jitter: Annotated[
        float, typer.Option("--jitter", min=0.0, max=1.0, help="Share of the images whose saturation, hue and exposure change.")
    ] = TrainConfig.jitter,
    small: Annotated[
        float, typer.Option("--small", min=0.0, max=1.0, help="Share of the batches cut to images of 1 to 31 pixels a side.")
    ] = TrainConfig.small,
    gray: Annotated[bool, typer.Option("--gray", help="Make colour images grey.")] = TrainConfig.gray,
    arch: Annotated[
        str, typer.Option("--arch", metavar="paper|residual", help="The networks' family; residual is that of comdefend-fast.")
    ] = TrainConfig.arch,
    downscale: Annotated[
        int, typer.Option("--downscale", help="Side of the squares that residual networks see: 2 or 4.")
    ] = TrainConfig.downscale,
    width: Annotated[int, typer.Option("--width", min=1, help="Channels of residual networks.")] = TrainConfig.width,
    blocks: Annotated[int, typer.Option("--blocks", min=0, help="Blocks in each of the two residual networks.")] = TrainConfig.blocks,
    bits: Annotated[int, typer.Option("--bits", help="Code bits a pixel: 4, 8, 10, 12, 14 or 16.")] = TrainConfig.bits,
    loss: Annotated[
        str, typer.Option("--loss", metavar="mse|rmse", help="Square error as in the paper, or its root, image by image.")
    ] = TrainConfig.loss,
    penalty: Annotated[
        float, typer.Option("--penalty", min=0.0, help="Lambda of eq. 1: weight of the code's mean square.")
    ] = TrainConfig.penalty,
    noise_std: Annotated[
        float, typer.Option("--noise-std", min=0.0, help="Phi of section 3.5: standard deviation of the noise on the logits.")
    ] = TrainConfig.noise_std,
    rounded_share: Annotated[
        float,
        typer.Option(
            "--rounded-share", min=0.0, max=1.0, help="Share of the steps, the last ones, that train on the rounded code of inference."
        ),
    ] = TrainConfig.rounded_share,
    input_noise: Annotated[
        list[float] | None,
        typer.Option(
            "--input-noise",
            min=0.0,
            help="Most standard deviation of input noise, in 8-bit levels; one, or one for each different --data. 0 is the paper's.",
            show_default=str(TrainConfig.input_noise),
        ),
    ] = None,
    input_noise_min: Annotated[
        list[float] | None,
        typer.Option(
            "--input-noise-min",
            min=0.0,
            help="Least standard deviation of input noise, likewise; each image draws its own.",
            show_default=str(TrainConfig.input_noise),
        ),
    ] = None,
    input_noise_least: Annotated[
        float | None, typer.Option("--input-noise-least", min=0.0, hidden=True, help="The old spelling of --input-noise-min.")
    ] = None,
    inference_noise: Annotated[
        float,
        typer.Option("--inference-noise", min=0.0, max=255.0, help="Noise that images get before these weights, in 8-bit levels."),
    ] = TrainConfig.inference_noise,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            metavar="CLASSIFIER",
            help="Whose features are to be kept; may repeat, for turns; with several --data, DATA=CLASSIFIER.",
        ),
    ] = None,
    feature_weight: Annotated[
        list[float] | None,
        typer.Option(
            "--feature-weight",
            min=0.0,
            help="Weight of their distance in the loss; one, or one for each DATA that has some.",
            show_default="0.01",
        ),
    ] = None,
    stability_weight: Annotated[
        float,
        typer.Option("--stability-weight", min=0.0, help="Weight in the loss of how far these classifiers' probabilities change."),
    ] = TrainConfig.stability_weight,
    adversarial: Annotated[
        str | None,
        typer.Option("--adversarial", metavar="fgsm|pgd", help="Learn also from attacks through the networks and --classifier."),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            "--classifier",
            metavar="FILE|NAME|MODULE:FUNCTION",
            help="Learn in front of this one, which stays as it is, from labels or else its own answers. May repeat, for turns.",
        ),
    ] = None,
    adversarial_epsilon: Annotated[
        str, typer.Option("--adversarial-epsilon", help="L-infinity distance of --adversarial's attacks.")
    ] = say_epsilon(TrainConfig.adversarial_epsilon),
    adversarial_steps: Annotated[int, typer.Option("--adversarial-steps", min=1, help="Steps of pgd.")] = TrainConfig.adversarial_steps,
    adversarial_share: Annotated[
        float, typer.Option("--adversarial-share", help="Share of each batch that is attacked.")
    ] = TrainConfig.adversarial_share,
    label_weight: Annotated[
        float, typer.Option("--label-weight", min=0.0, help="Weight in the loss of what --classifier says: cross-entropy, consistency.")
    ] = TrainConfig.label_weight,
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma", min=0.0, help="Learn for certify from copies with this much noise, in front of --classifier; pixels in [0, 1]."
        ),
    ] = TrainConfig.sigma,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Such copies of each image.")] = TrainConfig.draws,
    consistency: Annotated[
        float, typer.Option("--consistency", min=0.0, help="Weight of how unlike the answers to these copies are.")
    ] = TrainConfig.consistency,
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
    clip: Annotated[
        float, typer.Option("--clip", min=0.0, help="The most that a step's gradient may measure; 0 for no limit.")
    ] = TrainConfig.clip,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="NAME|PATH", help="Weights to start from; other --bits or channels: some layers are new."),
    ] = None,
    precision: options.TrainingPrecision = "auto",
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 500,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Steps between measurements of PSNR.")] = 100,
    test_images: Annotated[
        int | None,
        typer.Option("--test-images", min=1, help="Test images that the trained networks are measured on.", show_default="5000"),
    ] = None,
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

    refuse_unused(context)
    limit_threads()
    paths, checkpoint = _outputs(out), out.with_suffix(".checkpoint")
    with process_group(resolve_device(device)) as (where, rank), _one_voice(rank), ExitStack() as held:
        quiet = quiet or rank > 0
        with together():  # Only the first process looks: the others could take its fresh checkpoint for an old one.
            chosen, start = choose_networks(context, quiet=quiet)
            if rank == 0:
                overwrite = refuse_outputs([*paths.values()], PurifierTrainer.command, overwrite=overwrite, resume=resume, room=ROOM)
                held.enter_context(hold_outputs(out))
        parts = _fetch_parts(context.params, rank, quiet=quiet)
        with together():
            trainer = make_trainer(chosen, parts, where, start)
        tell_device(context.params, where, trainer.config.precision, quiet=quiet)
        history = train_to_end(
            trainer, checkpoint, resume=resume, checkpoint_every=checkpoint_every, measure_every=validate_every, quiet=quiet
        )
        if rank == 0:
            _finish(trainer, history, paths, test_images, overwrite=overwrite, quiet=quiet)
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


def _fetch_parts(chosen: Mapping[str, Any], rank: int, *, quiet: bool) -> list[Dataset]:
    """The data sets, each read once however often it is named; the first process goes ahead, so that only it downloads."""
    from comdefend_cli.training.distributed import together

    loaded: dict[str, Dataset] = {}
    how = {"crop": chosen["crop"], "shrink": chosen["shrink"], "download": not chosen["no_download"], "quiet": quiet}
    for mine in (rank == 0, rank > 0):
        with together():
            if mine:
                loaded = {name: fetch_dataset(name, chosen["data_dir"], **how) for name in dict.fromkeys(chosen["data"])}
    return [loaded[name] for name in chosen["data"]]


def _finish(
    trainer: PurifierTrainer, history: History, paths: dict[str, Path], test_images: int | None, *, overwrite: bool, quiet: bool
) -> None:
    """Measure the trained networks and write all that a run leaves."""
    from comdefend_cli.imaging.conversion import from_pillow
    from comdefend_cli.imaging.writing import write_image
    from comdefend_cli.network.weight_file import save_weights
    from comdefend_cli.runtime.files import write_atomically
    from comdefend_cli.training.plots import draw_curves, draw_reconstructions
    from comdefend_cli.training.purifier import FINAL_IMAGES

    count = min(test_images or FINAL_IMAGES, len(trainer.test_images))
    with progress.show_images(f"measuring on {count} test images", count, quiet=quiet) as advance:
        training = trainer.record(count, advance)
    sha256 = save_weights(paths["weights"], trainer.model, training, overwrite=overwrite)
    log = {"training": training, "sha256": sha256, "machine": _machine(trainer), "history": list(history.records())}
    write_atomically(paths["log"], (json.dumps(log, indent=1) + "\n").encode(), overwrite=overwrite)
    write_image(paths["curves"], from_pillow(draw_curves(history)), overwrite=overwrite)
    write_image(paths["pictures"], draw_reconstructions(trainer.model, trainer.test_images[:12]), overwrite=overwrite)
    said = f"{training['psnr_db']:.2f} dB, SSIM {training['ssim']:.4f} on {training['test_images']} test images"
    notice(f"wrote {paths['weights']}: {said}", quiet=quiet)


def _machine(trainer: PurifierTrainer) -> dict[str, Any]:
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import count_cores

    device = describe_device(trainer.device)
    return {"platform": platform.platform(), "cpus": count_cores(), "device": device, "processes": trainer.processes}
