"""`comdefend purify-dir DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comdefend_cli.batch.options import Options
from comdefend_cli.batch.ray_cluster import Cluster
from comdefend_cli.batch.request import Request
from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.engines import open_engine, refuse_engine
from comdefend_cli.cli.origin import tell_origin
from comdefend_cli.cli.run_report import open_report
from comdefend_cli.cli.run_summary import Summary
from comdefend_cli.errors import ComdefendError
from comdefend_cli.inference.settings import Settings

if TYPE_CHECKING:
    from comdefend_cli.batch.engine import Engine, Result


@console.command
def purify_dir(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images; nothing in it is changed. With Ray, also a URL.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where the purified images go.", show_default="DIR-purified"),
    ] = None,
    recursive: options.Recursive = Options.recursive,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="png|jpg|...", help="Write all in this format.", show_default="each file's own"),
    ] = Options.format,
    weights: options.Weights = Request.weights,
    device: options.Device = Request.device,
    precision: options.Precision = Request.precision,
    backend: options.Backend = Request.backend,
    tiling: options.Tiling = Settings.tiling,
    tile: options.Tile = Settings.tile,
    noise_std: options.NoiseStd = Settings.noise_std,
    input_noise: options.InputNoise = Settings.input_noise,
    samples: options.Samples = Settings.samples,
    seed: options.NoiseSeed = Settings.seed,
    quality: options.Quality = Options.quality,
    strip: options.Strip = Options.strip,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do all again, and replace files that are there.")] = Options.overwrite,
    max_megapixels: options.MaxMegapixels = Options.max_megapixels,
    on_collision: Annotated[
        str,
        typer.Option("--on-collision", metavar="error|number", help="Where two outputs would have one name: stop, or number one."),
    ] = Options.on_collision,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write one JSON record an image, as lines.", **options.UNCHECKED)
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="local|ray", help="Work on this machine (local) or on a Ray cluster, see docs/guides/cluster.md (ray)."
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes of a cluster that hold the networks.", show_default="all that have room"),
    ] = Cluster.workers,
    cpus_per_worker: Annotated[
        float | None, typer.Option("--cpus-per-worker", min=0.0, help="CPUs of each worker.", show_default="1")
    ] = Cluster.cpus,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker", min=0.0, help="GPUs of each worker; with 0.5, two share one.", show_default="1 where there are any"
        ),
    ] = Cluster.gpus,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Address of a running cluster.", show_default="RAY_ADDRESS, or this machine")
    ] = Cluster.address,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Purify a folder of images.

    Run it again to go on after an interruption: finished files are kept; changed inputs and other settings are done anew. An image
    that fails does not stop the rest, and is named at the end.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted (Ctrl-C or SIGTERM; what was finished stays).
    """
    from comdefend_cli.imaging.reading import prepare_pillow

    console.show_warnings(quiet)
    prepare_pillow(max_megapixels)
    chosen = Options(recursive, format, quality, strip, overwrite, max_megapixels, on_collision)
    cluster = Cluster(ray_address, workers, cpus_per_worker, gpus_per_worker)

    def make_request() -> Request:
        settings = Settings(tiling, tile, noise_std, seed, input_noise=input_noise, samples=samples)  # type: ignore[arg-type]  # Checked there.
        return Request(weights, device, precision, backend, settings)

    purify_folder(source, out, chosen, make_request, report=report, engine=engine, cluster=cluster, as_json=as_json, quiet=quiet)


def purify_folder(
    source: str,
    out: str | None,
    chosen: Options,
    make_request: Callable[[], Request],
    *,
    report: Path | None = None,
    engine: str = "local",
    cluster: Cluster | None = None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Go through a folder, say what happened, and end the command with the exit code of that.

    Args:
        source, out: paths or URLs; None for the default beside `source`.
        chosen: what is gone through, and how outputs are written.
        make_request: says what purifies, once PyTorch, which takes seconds, may be imported.
        report: where to write a record an image.
        engine, cluster: what does the work.
        as_json: print the record of the run.
        quiet: say nothing but errors.

    Raises:
        UsageError, ComdefendError: as of :func:`comdefend_cli.batch.engine.prepare`.
    """
    from comdefend_cli.batch.storage.place import choose_output, is_url, open_place

    target = choose_output(source) if out is None else out
    cluster = cluster or Cluster()
    refuse_engine(engine, source, target, cluster)
    if not is_url(source) and not is_url(target):
        open_place(source).refuse_output(open_place(target), recursive=chosen.recursive)
    request = make_request()
    summary = Summary(source, target, report, quiet, as_json)
    with open_report(report, Path(target), overwrite=chosen.overwrite) as write:
        places = open_place(source), open_place(target)
        fault = _go_through(open_engine(engine, *places, request, chosen, cluster), summary, write, tell_device=request.device == "auto")
        summary.say()
    if fault:
        raise fault
    _leave(summary)


def _go_through(
    opening: AbstractContextManager[Engine], summary: Summary, write: Callable[[Result], None], *, tell_device: bool
) -> ComdefendError | None:
    """Go through all results. Returns the error that ended them, once there was something to tell of; an earlier one is raised."""
    try:
        with opening as engine:
            if tell_device:
                console.notice(f"computing on {engine.where} in {engine.identity.how}", quiet=summary.quiet)
            tell_origin(engine.identity.sha256s, quiet=summary.quiet)
            summary.begin(engine)

            def stop(number: int) -> None:
                summary.interrupted = True
                engine.stop()

            with console.catch_interrupts(stop), _open_bar(engine, summary) as show:
                for result in engine.results():
                    summary.add(result)
                    write(result)
                    if show and result.status != "kept":
                        show(max(result.size, 1), "stopping, Ctrl-C again leaves at once  " if summary.interrupted else "")
    except KeyboardInterrupt:
        summary.interrupted = summary.at_once = True
        if not summary.about:  # Before anything was planned: an earlier report stays.
            summary.say()
            raise
    except ComdefendError as error:  # What was done until then is told too.
        if not summary.about:
            raise
        summary.interrupted = True
        return error
    return None


def _open_bar(engine: Engine, summary: Summary) -> AbstractContextManager[Callable[[int, str], None] | None]:
    """A bar of the files that are to do, by their bytes."""
    jobs, unreadable = engine.plan.jobs, len(engine.plan.found.unreadable)
    size = sum(max(job.size, 1) for job in jobs) + unreadable if jobs else 0
    return progress.show_files(len(jobs) + unreadable, size, lambda: engine.pixels, quiet=summary.quiet)


def _leave(summary: Summary) -> None:
    """End with the exit code of what happened."""
    if summary.at_once:
        # Threads may still be in the network; waiting for them is what the person did not want.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(console.INTERRUPTED)
    if summary.interrupted:
        raise typer.Exit(console.INTERRUPTED)
    if summary.failures:
        raise typer.Exit(1)
