"""`comdefend detect` and `comdefend calibrate-detector`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.origin import tell_origin_of_defences
from comdefend_cli.cli.preparation import fetch_labelled
from comdefend_cli.errors import ComdefendError, DatasetError, ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from comdefend_cli.evaluate.detection import Calibration, Detector

#: Exit code where an image was flagged.
FLAGGED = 3
WARNING = "this finds attacks of those who do not know of the detector; one who does passes it"


@console.command
def calibrate_detector(
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="NAME|DIR", help="Clean images: a folder of yours, or cifar10, fashion-mnist or mnist (test images)."
        ),
    ],
    classifier: Annotated[
        str,
        typer.Option("--classifier", metavar="FILE|NAME|MODULE:FUNCTION", help="The classifier to watch over, as of `comdefend evaluate`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The detector.", **options.UNCHECKED)] = Path("detector.json"),
    squeezers: Annotated[
        str,
        typer.Option(
            "--squeezers", help="What purifies: specs as of `evaluate --defences`, separated by spaces; the largest distance counts."
        ),
    ] = "comdefend-fast",
    false_alarms: Annotated[float, typer.Option("--false-alarms", help="Share of clean images that may be flagged.")] = 0.05,
    size: Annotated[
        int | None, typer.Option("--size", min=8, max=4096, help="Scale images to this and crop the centre.", show_default="as they are")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images at most, of a data set a random sample.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 0,
    data_dir: options.DataDir = Path("data"),
    no_download: options.NoDownload = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a detector for `comdefend detect`: find the threshold that so many of your clean images stay below."""
    import torch

    from comdefend_cli.classifiers.loading import load_classifier
    from comdefend_cli.evaluate import detection
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder
    from comdefend_cli.runtime.machine import limit_threads

    refuse_existing(out, overwrite=overwrite)
    refuse_unwritable_folder(out)
    limit_threads()
    where = resolve_device(device)
    watched = load_classifier(classifier, where, data=data)
    purifying = detection.make_squeezers(squeezers.split(), where, precision)
    tell_origin_of_defences(purifying, quiet=quiet)
    images = _gather(data, data_dir, size=size, limit=limit, seed=seed, download=not no_download, quiet=quiet)
    detection.refuse_false_alarms(false_alarms, len(images))
    scores = _score_all(detection.Detector(watched.model, purifying), images, data, quiet=quiet)
    threshold = detection.choose_threshold(torch.tensor(scores), false_alarms)
    made = detection.Calibration(
        classifier,
        detection.hash_classifier(watched),
        tuple(squeezer.name for squeezer in purifying),
        detection.hash_squeezers(purifying),
        size,
        int(images[0].shape[1]),
        false_alarms,
        threshold,
        len(scores),
    )
    made.write(out, overwrite=overwrite)
    notice(f"wrote {out}: flags scores above {threshold:.4f}, from {len(scores)} clean images", quiet=quiet)
    notice(WARNING, quiet=quiet)


@console.command
def detect(
    images: Annotated[list[str], typer.Argument(metavar="IN...", help="Images, or folders of them.")],
    detector: Annotated[
        Path, typer.Option("--detector", metavar="FILE", help="What `comdefend calibrate-detector` wrote.", **options.UNCHECKED)
    ] = Path("detector.json"),
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier", metavar="FILE|NAME|MODULE:FUNCTION", help="Where the same classifier is now.", show_default="the file's"
        ),
    ] = None,
    recursive: options.Recursive = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write one JSON record an image, as lines.", **options.UNCHECKED)
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell which images are attacked: those whose class moves too far when they are purified.

    Exit codes: 0 none flagged, 3 some flagged, 1 none flagged but some could not be read, 2 wrong usage.
    """
    from comdefend_cli.evaluate.detection import Calibration, load_detector
    from comdefend_cli.imaging.reading import prepare_pillow
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder, write_atomically
    from comdefend_cli.runtime.machine import limit_threads

    if report is not None:
        refuse_existing(report, overwrite=overwrite)
        refuse_unwritable_folder(report)
    calibration = Calibration.read(detector)
    paths = list(_list_paths(images, recursive=recursive))
    if not paths:
        raise UsageError(f"{images[0]}: no images here; name others, or add --recursive")
    if report is not None and report.resolve() in {each.resolve() for each in (*paths, detector)}:
        raise UsageError(f"--report {report}: is an image to look at, or the detector; name another file")
    prepare_pillow()
    limit_threads()
    loaded = load_detector(calibration, classifier, resolve_device(device), precision)
    tell_origin_of_defences(loaded.squeezers, quiet=quiet)
    records: list[dict[str, Any]] = []
    try:
        for path in paths:
            console.check_interrupt()
            records.append(_examine(path, loaded, calibration))
            _say(records[-1], as_json=as_json, quiet=quiet)
    finally:  # Also of those before an interruption.
        if report is not None and records:
            write_atomically(report, "".join(json.dumps(record) + "\n" for record in records).encode(), overwrite=overwrite)
    notice(WARNING, quiet=quiet)
    if any(record["flagged"] for record in records):
        raise typer.Exit(FLAGGED)
    if any(record["error"] for record in records):
        raise typer.Exit(ComdefendError.exit_code)


def _gather(data: str, data_dir: Path, *, size: int | None, limit: int, seed: int, download: bool, quiet: bool) -> list[Tensor]:
    """Clean images, uint8 (1, C, H, W) each, all of as many channels."""
    from comdefend_cli.data.datasets import DATASETS
    from comdefend_cli.data.folder import find_folder, list_images
    from comdefend_cli.evaluate.detection import fit_image
    from comdefend_cli.imaging.reading import prepare_pillow, read_image

    if data in DATASETS:
        found = fetch_labelled(data, data_dir, limit=limit, seed=seed, size=size, download=download, quiet=quiet)
        return [image[None] for image in found.pixels]
    prepare_pillow()
    try:
        paths = list_images(find_folder(data, f"{', '.join(DATASETS)}, or a folder of images"))[:limit]
    except DatasetError as error:
        raise UsageError(str(error)) from error
    images, skipped = [], 0
    for path in paths:
        try:
            images.append(fit_image(read_image(path).pixels, size, 3, str(path)))
        except ImageError:
            skipped += 1
    if skipped:
        notice(f"{skipped} files in {data} could not be read as images", quiet=quiet)
    if not images:
        raise UsageError(f"{data}: no images here; name a folder of clean ones")
    return images


def _list_paths(names: list[str], *, recursive: bool) -> Iterator[Path]:
    from comdefend_cli.data.folder import list_images
    from comdefend_cli.runtime.files import refuse_absent

    for name in names:
        path = Path(name)
        refuse_absent(path, "no such image or folder")
        if path.is_dir():
            yield from (each for each in list_images(path) if recursive or each.parent == path)
        else:
            yield path


def _score_all(detector: Detector, images: list[Tensor], data: str, *, quiet: bool) -> list[float]:
    """The scores of clean images, with a bar."""
    scores = []
    with progress.show_images("scoring clean images", len(images), quiet=quiet) as advance:
        for image in images:
            console.check_interrupt()
            scores.append(_score(detector, image, data, "give --size"))
            if advance:
                advance(1)
    return scores


def _score(detector: Detector, image: Tensor, name: str, remedy: str) -> float:
    """The score of an image; the user's own classifier raises what it likes."""
    from comdefend_cli.errors import explain

    try:
        return float(detector.score(image))
    except ComdefendError:
        raise
    except Exception as error:
        wrong = f"the classifier fails on images of the shape {tuple(image.shape)} ({explain(error)})"
        raise UsageError(f"{name}: {wrong}; {remedy}") from error


def _examine(path: Path, detector: Detector, calibration: Calibration) -> dict[str, Any]:
    """The record of an image; one that cannot be read, or that the classifier fails on, has an error in place of a score."""
    from comdefend_cli.evaluate.detection import fit_image
    from comdefend_cli.imaging.reading import read_image

    score, why = None, None
    try:
        image = fit_image(read_image(path).pixels, calibration.size, calibration.channels, str(path))
        score = round(_score(detector, image, str(path), "calibrate with --size"), 6)
    except ComdefendError as error:
        why = str(error)
    flagged = score is not None and score > calibration.threshold
    return {"input": str(path), "flagged": flagged, "score": score, "threshold": calibration.threshold, "error": why}


def _say(record: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        console.print_json(record)
    elif record["error"]:
        console.print_error(ComdefendError(record["error"]))
    elif not quiet:
        name = console.escape_unprintable(record["input"])
        console.print_line(f"{'attacked' if record['flagged'] else 'passed  '}  {record['score']:.4f}  {name}")
