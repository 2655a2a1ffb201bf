"""`comdefend certify`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.origin import load_told
from comdefend_cli.cli.preparation import fetch_labelled
from comdefend_cli.cli.tables import print_table
from comdefend_cli.errors import ComdefendError, explain

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from comdefend_cli.classifiers.loading import Classifier
    from comdefend_cli.data.labelled import Labelled
    from comdefend_cli.evaluate.certification import Row

#: --weights of a classifier that is smoothed alone.
NO_PURIFIER = "none"


@console.command
def certify(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="NAME|DIR", help="Images: cifar10, fashion-mnist, mnist, or a folder with labels.csv or a sub-folder a class."
        ),
    ],
    classifier: Annotated[
        str,
        typer.Option(
            "--classifier",
            metavar="FILE|NAME|MODULE:FUNCTION",
            help="A file of `comdefend train-classifier`, a name such as small or efficientnet-lite0, or a function of yours that "
            "returns a torch module from (N, C, H, W) in [0, 1] to logits.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="NAME|PATH|none",
            help="What removes the noise: a name that `comdefend weights list` prints, a weight file, or none.",
            show_default="comdefend-fast, for grey images comdefend-fast-gray",
        ),
    ] = None,
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma", min=0.0, max=2.0, help="Standard deviation of the noise, pixels in [0, 1]; larger certifies farther, and less."
        ),
    ] = 0.25,
    n: Annotated[int, typer.Option("--n", min=1, help="Noisy copies that a certificate counts.")] = 10_000,
    n0: Annotated[int, typer.Option("--n0", min=1, help="Further copies that choose the class it is about.")] = 100,
    alpha: Annotated[float, typer.Option("--alpha", help="How probably a certificate may be wrong, each image for itself.")] = 0.001,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images, a random sample of all.")] = 500,
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="Scale a folder's images to this and crop the centre.", show_default="as they are")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 0,
    noise_seed: Annotated[
        int | None,
        typer.Option(
            "--noise-seed", min=0, help="Seed of the noise, to repeat a run; an attacker must not know it.", show_default="nobody knows it"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Noisy copies at a time.")] = 500,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for certificates.tsv, summary.json and curve.png.")] = Path(
        "certificates"
    ),
    data_dir: options.DataDir = Path("data"),
    no_download: options.NoDownload = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove how far a classifier behind the purifier keeps its answer: randomized smoothing, an L2 radius for each image.

    Needs the extra: pip install 'comdefend-cli[evaluate]'.

    Run again with the same options, it goes on where it was interrupted.
    """
    from comdefend_cli.runtime.device import describe_device, resolve_device
    from comdefend_cli.runtime.extras import require
    from comdefend_cli.runtime.machine import limit_threads

    for module in ("scipy", "matplotlib"):
        require(module, extra="evaluate")
    limit_threads()
    where = resolve_device(device)
    if device == "auto":
        notice(f"computing on {describe_device(where)}", quiet=quiet)
    images = fetch_labelled(data, data_dir, limit=limit, seed=seed, size=size, download=not no_download, quiet=quiet)
    run = _prepare(context.params, images, where)
    rows = _certify(run, out, overwrite=overwrite, quiet=quiet)
    summary = _sum_up(run, rows, out)
    if as_json:
        console.print_json(summary)
    elif not quiet:
        print_table(_make_table(summary))
    notice(f"wrote certificates.tsv, summary.json and curve.png into {out}", quiet=quiet)


@dataclass(frozen=True)
class _Run:
    """What is certified, and all settings that decide the rows."""

    images: Labelled
    classifier: Classifier
    smoothed: Any
    settings: dict[str, Any]
    where: torch.device


def _prepare(chosen: Mapping[str, Any], images: Labelled, where: torch.device) -> _Run:
    from comdefend_cli import __version__
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.evaluate.certification import InPrecision
    from comdefend_cli.evaluate.systems import fit_classifier
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.integrations.smoothed import Smoothed
    from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY
    from comdefend_cli.runtime.device import dtype_name, resolve_precision

    found = fit_classifier(load_classifier(chosen["classifier"], where, data=chosen["data"]), images, where)
    name = chosen["weights"] or (DEFAULT_COLOR if images.pixels.shape[1] == 3 else DEFAULT_GRAY)
    loaded = None if name == NO_PURIFIER else load_told(name, quiet=chosen["quiet"])
    purifier = None if loaded is None else Purifier.from_weights([loaded], device=str(where), precision=chosen["precision"])
    numbers = {key: chosen[key] for key in ("sigma", "n", "n0", "alpha")}
    precision = dtype_name(resolve_precision(chosen["precision"], where))
    smoothed = Smoothed(purifier, InPrecision(found.model, precision), **numbers, batch=chosen["batch_size"], seed=chosen["noise_seed"])
    settings = {
        "comdefend": __version__,
        "data": images.name,
        "sample": f"the first of all, in the order of seed {chosen['seed']}"
        + (f", {chosen['size']}x{chosen['size']}" if chosen["size"] else ""),
        "classifier": found.name,
        "classifier sha256": found.sha256,
        "weights": NO_PURIFIER if loaded is None else loaded.name,
        "weights sha256": "" if loaded is None else loaded.sha256,
        **numbers,
        "norm": "L2, pixels in [0, 1]",
        "noise": "normal, rounded to 8-bit levels",
        "noise seed": chosen["noise_seed"],
        "precision": precision,
    }
    return _Run(images, found, smoothed, settings, where)


def _certify(run: _Run, out: Path, *, overwrite: bool, quiet: bool) -> list[Row]:
    from comdefend_cli.evaluate.certification import RowFile, certify_images
    from comdefend_cli.runtime.files import refuse_existing

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{out}: cannot make this folder: {explain(error)}") from error
    if not overwrite and not (out / "certificates.tsv").exists():
        for name in ("summary.json", "curve.png"):
            refuse_existing(out / name, overwrite=False)
    file = RowFile(out / "certificates.tsv", run.settings, run.images, overwrite=overwrite)
    if file.rows:
        notice(f"{len(file.rows)} images were certified before", quiet=quiet)
    with progress.show_images("certifying the images", len(run.images), quiet=quiet) as advance:
        if advance:
            advance(len(file.rows))
        for _ in certify_images(run.smoothed, run.images, file):
            console.check_interrupt()
            if advance:
                advance(1)
    return [file.rows[idx] for idx in sorted(file.rows)]


def _sum_up(run: _Run, rows: list[Row], out: Path) -> dict[str, Any]:
    """Write summary.json and the curve; returns the summary."""
    import torch

    from comdefend_cli.evaluate.certification import draw_curve, list_radii, sum_up
    from comdefend_cli.evaluate.stats import compute_percentages
    from comdefend_cli.runtime.files import write_atomically

    with torch.no_grad():
        answers = [run.classifier.model(x.to(run.where)).argmax(1).cpu() for x in torch.split(run.images.floats(), 100)]
    bare = int((torch.cat(answers) == run.images.labels).sum())
    smoothed = run.smoothed
    radii = list_radii(run.images.pixels.shape[1:], smoothed.sigma, smoothed.n, smoothed.alpha)
    summary = {
        **run.settings,
        "images": len(rows),
        "abstained": sum(row.predict < 0 for row in rows),
        "clean": compute_percentages(bare, len(rows)),
        "certified": sum_up(rows, radii),
        "seconds": round(sum(row.seconds for row in rows), 1),
    }
    draw_curve(rows, smoothed.sigma, summary["clean"]["accuracy"], out / "curve.png")
    write_atomically(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode(), overwrite=True)
    return summary


def _make_table(summary: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        title=f"Certified accuracy in % (95 % interval), n = {summary['images']}; each image wrong with probability {summary['alpha']:g}"
    )
    for head in ("L2 radius", "accuracy", "interval"):
        table.add_column(head)
    for name, found in (("clean, without smoothing", summary["clean"]), *((row["name"], row) for row in summary["certified"])):
        table.add_row(name, f"{found['accuracy']:.1f}", f"{found['low']:.1f}-{found['high']:.1f}")
    return table
