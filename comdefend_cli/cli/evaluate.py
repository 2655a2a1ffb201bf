"""`comdefend evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.earlier_results import accept_earlier
from comdefend_cli.cli.epsilons import parse_epsilons
from comdefend_cli.cli.origin import tell_origin_of_defences
from comdefend_cli.cli.preparation import fetch_labelled
from comdefend_cli.cli.run_record import describe_run
from comdefend_cli.cli.tables import print_table
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.evaluate.attacks.recipes import RECIPES, RENAMED
from comdefend_cli.evaluate.cells import GRAY_BOX, THREATS, say_epsilon
from comdefend_cli.evaluate.certified import read_certificates
from comdefend_cli.evaluate.gate import find_misses, parse_floors, refuse_unmeasured
from comdefend_cli.evaluate.protocol import DEFAULT_ATTACKS, GRAY_ATTACKS, Protocol

if TYPE_CHECKING:
    import torch

    from comdefend_cli.classifiers.loading import Classifier
    from comdefend_cli.data.labelled import Labelled
    from comdefend_cli.evaluate.evaluation import Evaluation
    from comdefend_cli.evaluate.systems import System

#: Exit code where a defence is below --fail-under.
MISSED = 4
DEFENCES = (
    "none comdefend-12bit comdefend-12bit-denoise comdefend-fast:input-noise=0 comdefend-fast bits:depth=3 median:size=3 jpeg:quality=75"
)


@console.command
def evaluate(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="NAME|DIR", help="Images: cifar10, fashion-mnist, mnist, or a folder with labels.csv or a sub-folder a class."
        ),
    ],
    classifier: Annotated[
        list[str],
        typer.Option(
            "--classifier",
            metavar="FILE|NAME|MODULE:FUNCTION",
            help="A file of `comdefend train-classifier`, small, medium, resnet18 or resnet50 in ./classifiers, efficientnet-lite0, "
            "or a function of yours that returns a torch module from (N, C, H, W) in [0, 1] to logits. May be given again.",
        ),
    ],
    data_dir: options.DataDir = Path("data"),
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results.json, report.html, tables.md and charts.")] = Path(
        "evaluation"
    ),
    defences: Annotated[
        str,
        typer.Option(
            "--defences",
            help="Names with options, separated by spaces or semicolons: none, weights that ship or a weight file, bits, median, jpeg, tv, "
            "resize-pad, pixeldefend, hgd; for example 'none comdefend-fast:input-noise=30 jpeg:quality=75'.",
        ),
    ] = DEFENCES,
    attacks: Annotated[
        str | None,
        typer.Option("--attacks", help=f"Names, separated by commas: {', '.join(DEFAULT_ATTACKS)}.", show_default="all"),
    ] = None,
    epsilons: Annotated[str, typer.Option("--epsilons", help="Most L-infinity distances, separated by commas.")] = ",".join(
        map(say_epsilon, Protocol.epsilons)
    ),
    threat_models: Annotated[
        str | None,
        typer.Option("--threat-models", help="Some of grey-box, adaptive, black-box; clean is always measured.", show_default="all"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images, a random sample of all.")] = 500,
    limit_adaptive: Annotated[
        int, typer.Option("--limit-adaptive", min=1, help="Images for adaptive attacks, the first of the sample.")
    ] = Protocol.limit_adaptive,
    limit_black_box: Annotated[
        int, typer.Option("--limit-black-box", min=1, help="Images for Square, the first of the sample.")
    ] = Protocol.limit_black_box,
    slow_epsilons: Annotated[
        str | None,
        typer.Option(
            "--slow-epsilons",
            help="Those of --epsilons at which APGD + FMN + Square and Square are made.",
            show_default="8/255, or the middle one",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of PGD.")] = Protocol.steps,
    restarts: Annotated[
        int, typer.Option("--restarts", min=1, help="Starts of PGD; from the second on, for the images that still stand.")
    ] = Protocol.restarts,
    eot: Annotated[int, typer.Option("--eot", min=1, help="Samples of a random defence that a gradient is averaged over.")] = Protocol.eot,
    resubmissions: Annotated[
        int, typer.Option("--resubmissions", min=1, help="How often an attacked image meets a random defence; one wrong answer counts.")
    ] = Protocol.resubmissions,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Queries of Square, also in APGD + FMN + Square.")] = Protocol.queries,
    float_pixels: Annotated[
        bool, typer.Option("--float", help="Do not round adversarial images to 8 bits, as saved files are; for comparison.")
    ] = Protocol.float_pixels,
    save_adversarial: Annotated[
        Path | None,
        typer.Option("--save-adversarial", metavar="DIR", help="Write the grey-box images as PNG, a folder an attack, with labels.csv."),
    ] = None,
    certificates: Annotated[
        list[Path] | None,
        typer.Option("--certificates", metavar="DIR", help="What `comdefend certify` wrote for one of these systems; may repeat."),
    ] = None,
    fail_under: Annotated[
        str | None,
        typer.Option("--fail-under", help="Exit with 4 where a defence has less, in %: clean=80,grey-box:8=40,certified:0.25=50."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="Scale a folder's images to this and crop the centre.", show_default="as they are")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample, the attacks and random defences.")] = Protocol.seed,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = Protocol.batch,
    no_download: options.NoDownload = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how much a purifier protects a classifier: grey-box, adaptive and black-box, side by side.

    Needs the extra: pip install 'comdefend-cli[evaluate]'.

    Finished cells are kept in DIR/cache, so that the same command goes on where it was interrupted. Results of other settings are
    replaced with --overwrite alone.
    """
    from comdefend_cli.runtime.device import describe_device, resolve_device
    from comdefend_cli.runtime.extras import require
    from comdefend_cli.runtime.machine import limit_threads

    for module in ("foolbox", "art", "matplotlib"):
        require(module, extra="evaluate")
    limit_threads()
    began = time.perf_counter()
    protocol = _make_protocol(context.params, quiet)
    floors = parse_floors(fail_under) if fail_under is not None else []
    refuse_unmeasured(floors, protocol, defences, certified=bool(certificates))
    _prepare_outputs(out, save_adversarial, protocol)
    where = resolve_device(device)
    if device == "auto":
        notice(f"computing on {describe_device(where)}", quiet=quiet)
    images = fetch_labelled(data, data_dir, limit=limit, seed=seed, size=size, download=not no_download, quiet=quiet)
    evaluation = _plan(protocol, images, _make_systems(classifier, defences, data, where, precision, quiet=quiet), out, where)
    if accept_earlier(out / "results.json", {**evaluation.to_json(), "precision": precision}, overwrite=overwrite):
        notice(f"{out} holds results of the same settings: what is measured there is kept", quiet=quiet)
    certified = [read_certificates(folder, evaluation.to_json()) for folder in certificates or []]
    _measure(evaluation, quiet)
    results = {**evaluation.to_json(), "certificates": certified, **describe_run(where, precision, began)}
    with progress.show_waiting("drawing charts and writing the report", quiet=quiet):
        _write(evaluation, results, out)
    if save_adversarial is not None:
        _save_adversarial(evaluation, save_adversarial, quiet)
    _show(results, as_json=as_json, quiet=quiet)
    notice(f"wrote {out / 'report.html'}, {out / 'results.json'} and the charts beside them", quiet=quiet)
    misses = find_misses(floors, results)
    for miss in misses:
        console.print_error(ComdefendError(miss))
    if misses:
        raise typer.Exit(MISSED)


def _make_protocol(chosen: Mapping[str, Any], quiet: bool) -> Protocol:
    """The settings that the options of the same names are, those that are lists in text, and the batch."""
    slow = chosen["slow_epsilons"]
    named = {item.name: chosen[item.name] for item in fields(Protocol) if item.name in chosen}
    read = {
        "attacks": _split_attacks(chosen["attacks"], quiet),
        "epsilons": parse_epsilons("--epsilons", chosen["epsilons"]),
        "slow_epsilons": None if slow is None else parse_epsilons("--slow-epsilons", slow),
        "threats": _split_names(chosen["threat_models"], THREATS),
        "batch": chosen["batch_size"],
    }
    return Protocol(**{**named, **read})


def _split_names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _split_attacks(text: str | None, quiet: bool) -> tuple[str, ...]:
    names = _split_names(text, DEFAULT_ATTACKS)
    for name in names:
        if name.lower() in RENAMED:
            other = RENAMED[name.lower()]
            notice(f"{name} stands for {other} here, {RECIPES[other].title}, which has no FAB and so is not AutoAttack", quiet=quiet)
    return names


def _prepare_outputs(out: Path, save_adversarial: Path | None, protocol: Protocol) -> None:
    """Make the folder; refuse before the work what could not be written after it."""
    from comdefend_cli.errors import ComdefendError, explain
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

    if save_adversarial is not None and not (GRAY_BOX in protocol.threats and protocol.choose(GRAY_ATTACKS)):
        raise UsageError("--save-adversarial writes the images of grey-box attacks, and none is asked for: add one, or leave it out")
    refuse_existing(out / "results.json", overwrite=True)  # A folder of that name.
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{out}: cannot make this folder: {explain(error)}") from error
    refuse_unwritable_folder(out / "results.json")
    folder = save_adversarial
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there and not empty; name a new folder for --save-adversarial")


def _make_systems(specs: list[str], defences: str, data: str, where: torch.device, precision: str, *, quiet: bool) -> list[System]:
    """Each classifier behind each defence."""
    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.evaluate.defences.catalogue import make_defence
    from comdefend_cli.evaluate.systems import System

    classifiers: list[Classifier] = [load_classifier(spec, where, data=data) for spec in specs]
    names = [item.name for item in classifiers]
    if len(set(names)) < len(names):
        raise UsageError(f"two classifiers are called {max(names, key=names.count)!r}; rename one of the files")
    wanted = list(dict.fromkeys(defences.replace(";", " ").split()))
    if not wanted:
        raise UsageError("--defences names none; give at least 'none'")
    made = [make_defence(spec, device=str(where), precision=precision) for spec in wanted]
    tell_origin_of_defences(made, quiet=quiet)
    return [System(item, defence) for item in classifiers for defence in made]


def _plan(protocol: Protocol, data: Labelled, systems: list[System], out: Path, where: torch.device) -> Evaluation:
    from comdefend_cli.evaluate.cache import Cache
    from comdefend_cli.evaluate.evaluation import Evaluation

    return Evaluation(protocol, data, systems, Cache(out / "cache"), where)


def _measure(evaluation: Evaluation, quiet: bool) -> None:
    with progress.show_cells(evaluation.count(), quiet=quiet) as show:
        if show:
            evaluation.progress = lambda label, done, count: show(len(evaluation.cells), label, done, count)
        for cell in evaluation.run():
            if not quiet and not err.is_terminal:
                at = f" at {say_epsilon(cell.epsilon)}" if cell.epsilon is not None else ""
                how = f" ({cell.gradient})" if cell.gradient else ""
                err.print(
                    f"{cell.threat}: {cell.classifier} behind {cell.defence}, {cell.title}{at}{how}: "
                    f"{100 * cell.correct / cell.n:.1f} % of {cell.n}, {cell.seconds:.0f} s"
                )


def _write(evaluation: Evaluation, results: dict[str, Any], out: Path) -> None:
    """results.json last: where it is, all else is."""
    from comdefend_cli.evaluate.reporting.drawing import write_charts
    from comdefend_cli.evaluate.reporting.gallery_images import make_gallery
    from comdefend_cli.evaluate.reporting.page import render
    from comdefend_cli.evaluate.reporting.text import make_markdown
    from comdefend_cli.runtime.files import write_atomically

    # What is there was asked after before the work: it is of the same settings, or may be replaced.
    write_charts(results, out / "charts", overwrite=True)
    page = render(results, make_gallery(evaluation))
    write_atomically(out / "report.html", page.encode(), overwrite=True)
    write_atomically(out / "tables.md", make_markdown(results).encode(), overwrite=True)
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode(), overwrite=True)


def _save_adversarial(evaluation: Evaluation, folder: Path, quiet: bool) -> None:
    from comdefend_cli.evaluate.reporting.gallery_images import save_adversarial

    count = save_adversarial(evaluation, folder)
    notice(f"wrote {count} adversarial images below {folder}: try comdefend purify-dir --recursive on it", quiet=quiet)


def _show(results: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from comdefend_cli.evaluate.reporting.text import make_rich_tables

    if as_json:
        console.print_json(results)
        return
    if not quiet:
        for table in make_rich_tables(results):
            print_table(table)
    for alarm in results["alarms"]:
        text = f"gradient masking alarm: {alarm['classifier']} behind {alarm['defence']}: {alarm['message']}"
        err.print(text, style="bold red")
