"""`comdefend purify-dir DIR`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, engines, options
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.work import settings_record
from comdefend_cli.errors import ComdefendError, UsageError

if TYPE_CHECKING:
    from comdefend_cli.batch.local import Networks, Result, Work
    from comdefend_cli.batch.ray_engine import Run

#: Bytes of a report that are kept in memory before it is finished.
_SPOOL = 2**20


@console.command
def purify_dir(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images; nothing in it is changed. With Ray, also a URL.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where the purified images go.", show_default="DIR-purified"),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also subfolders; the output mirrors them.")] = False,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="png|jpg|...", help="Write all in this format.", show_default="each file's own"),
    ] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    tiling: options.Tiling = "exact",
    tile: options.Tile = None,
    noise_std: options.NoiseStd = 0.0,
    input_noise: options.InputNoise = None,
    samples: options.Samples = 1,
    seed: options.NoiseSeed = 0,
    quality: options.Quality = None,
    strip: options.Strip = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do all again, and replace files that are there.")] = False,
    max_megapixels: options.MaxMegapixels = 512,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write one JSON record an image, as lines.", **options.UNCHECKED)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="local|ray", help="ray: on a Ray cluster, see docs/cluster.md.")] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray: processes that hold the networks.", show_default="all that have room")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option("--cpus-per-worker", min=0.0, help="Ray: CPUs of each.", show_default="1")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option("--gpus-per-worker", min=0.0, help="Ray: GPUs of each; 0.5: two share one.", show_default="1 where there are any"),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Of a running cluster.", show_default="RAY_ADDRESS, or this machine")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON record of the whole.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Purify a folder of images.

    Run it again to go on after an interruption: finished files are kept; changed inputs and other settings are done anew. An image
    that fails does not stop the rest, and is named at the end.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted (Ctrl-C or SIGTERM; what was finished stays).
    """
    from comdefend_cli.batch import plan
    from comdefend_cli.batch import storage as places
    from comdefend_cli.imaging.reading import lift_pillow_limit

    console.show_warnings(quiet)
    lift_pillow_limit()
    target = str(plan.default_output(source)) if out is None else out
    chosen = plan.Options(recursive, format, quality, strip, overwrite, max_megapixels)
    cluster = engines.RayOptions(ray_address, workers, cpus_per_worker, gpus_per_worker)
    engines.refuse(engine, source, target, cluster)
    if not places.is_url(source) and not places.is_url(target):
        plan.refuse_folders(Path(source), Path(target), recursive=recursive)

    # PyTorch takes seconds to import: what can be said without it has been said.
    from comdefend_cli.inference.purifier import Settings

    settings = Settings(tiling, tile, noise_std, seed, input_noise=input_noise, samples=samples)  # type: ignore[arg-type]  # Checked by Settings.
    summary = Summary(source, target, report)
    asked = engines.Asked(source, target, weights, device, precision, backend, settings, chosen)
    fault: ComdefendError | None = None
    with _report(report, Path(target), overwrite=overwrite) as write:
        try:
            with engines.opened(engine, asked, cluster) as (work, networks):
                _tell_device(networks, device, quiet)
                summary.planned(work, networks)

                def stop(number: int) -> None:
                    summary.interrupted = True
                    work.stop()

                with console.interruptible(stop), _live(work, summary, quiet) as show:
                    for result in work.results():
                        summary.add(result)
                        write(result)
                        show(result)
        except KeyboardInterrupt:
            summary.interrupted = summary.at_once = True
            if not summary.about:  # Before anything was planned: an earlier report stays.
                summary.say(quiet=quiet, as_json=as_json)
                raise
        except ComdefendError as error:  # What was done until then is told too.
            if not summary.about:
                raise
            fault, summary.interrupted = error, True
        summary.say(quiet=quiet, as_json=as_json)
    if fault:
        raise fault
    _leave(summary)


@dataclass
class Summary:
    """What a run did, for a person and as one record."""

    source: str
    out: str
    report: Path | None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)
    lossy: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    total: int = 0
    skipped: int = 0
    subfolders: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    interrupted: bool = False
    at_once: bool = False

    def planned(self, work: Work | Run, networks: Networks) -> None:
        """Take over what is known before the first image; the clock starts here."""
        found = work.plan.found
        self.total = len(found.images) + len(found.unreadable)
        self.skipped, self.subfolders = found.skipped, found.subfolders
        self.about = {
            **settings_record(networks.settings, networks.where, networks.precision, networks.backend),
            "weights_sha256": networks.sha256s,
        }
        self.began = time.perf_counter()

    def add(self, result: Result) -> None:
        """Count one result."""
        from comdefend_cli.imaging.formats import LOSSY

        self.counts[result.status] += 1
        self.notices.update(result.notices)
        if result.status == "failed":
            self.failures.append((str(result.input), result.reason))
        elif result.status == "done":
            self.pixels += (result.width or 0) * (result.height or 0)
            if result.format in LOSSY:
                self.lossy[LOSSY[result.format]] += 1

    @property
    def left(self) -> int:
        """Images that an interruption left undone."""
        return self.total - self.counts.total()

    def record(self) -> dict[str, Any]:
        """As one JSON object; times in seconds."""
        seconds = time.perf_counter() - self.began
        return {
            "input": str(self.source),
            "output": str(self.out),
            "report": None if self.report is None else str(self.report),
            "files": self.total,
            **{status: self.counts[status] for status in ("done", "kept", "failed")},
            "left": self.left,
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "megapixels": round(self.pixels / 1e6, 4),
            "seconds": round(seconds, 3),
            "megapixels_per_second": round(self.pixels / 1e6 / seconds, 4),
            **self.about,
        }

    def say(self, *, quiet: bool, as_json: bool) -> None:
        """Name what failed, then what happened to all; notices once each."""
        record = self.record()
        for text, count in self.notices.most_common(20):
            notice(f"{_files(count)}: {text}", quiet=quiet)
        for text, count in self.lossy.items():
            notice(f"{_files(count)}: {text} changes the purified pixels again; --format png keeps them exactly", quiet=quiet)
        if self.subfolders:
            notice(f"{self.subfolders} subfolders were left out; --recursive goes through them too", quiet=quiet)
        for path, why in self.failures:
            err.print(f"error: {console.printable(path)}: {why}", style="red")
        if not quiet:
            err.print(
                f"{'interrupted: ' if self.interrupted else ''}{record['done']} purified, {record['kept']} kept from before, "
                f"{record['failed']} failed, {f'{self.left} left, ' if self.interrupted else ''}"
                f"{self.skipped} skipped (no images); {record['megapixels']:.2f} megapixels in {record['seconds']:.1f} s "
                f"({record['megapixels_per_second']:.2f} a second); output in {console.printable(str(self.out))}"
            )
            if self.interrupted:
                err.print("the same command goes on from here", style="yellow")
        if as_json:
            console.print_json(record)


def _leave(summary: Summary) -> None:
    if summary.at_once:
        # Threads may still be in the network; waiting for them is what the person did not want.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(console.INTERRUPTED)
    if summary.interrupted:
        raise typer.Exit(console.INTERRUPTED)
    if summary.failures:
        raise typer.Exit(1)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _tell_device(networks: Networks, asked: str, quiet: bool) -> None:
    if asked == "auto":
        notice(f"computing on {networks.where} in {networks.how}", quiet=quiet)


@contextmanager
def _live(work: Work | Run, summary: Summary, quiet: bool) -> Iterator[Callable[[Result], None]]:
    """A function that is told each result, with a live line on a terminal."""
    if quiet or not err.is_terminal or not work.plan.jobs:
        yield lambda result: None
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Megapixels a second, counted as they leave the network, so that it moves within a large image."""

        def render(self, task: Task) -> Text:
            return Text(f"{work.pixels / 1e6 / max(time.perf_counter() - summary.began, 1e-3):.2f} megapixels/s")

    count, total = 0, summary.total - len(work.plan.kept)
    columns = (TextColumn("{task.description}"), BarColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        # By bytes, which tell the time left better than a count of files of all sizes.
        task = progress.add_task(
            f"0/{total} files", total=sum(max(job.size, 1) for job in work.plan.jobs) + len(work.plan.found.unreadable)
        )

        def show(result: Result) -> None:
            nonlocal count
            if result.status != "kept":
                count += 1
                stopping = "stopping, Ctrl-C again leaves at once  " if summary.interrupted else ""
                progress.update(task, advance=max(result.size, 1), description=f"{stopping}{count}/{total} files")

        yield show


@contextmanager
def _report(path: Path | None, out: Path, *, overwrite: bool) -> Iterator[Callable[[Result], None]]:
    """A function that takes results into a report, which is written when the block ends, also by Ctrl-C."""
    if path is None:
        yield lambda result: None
        return
    import shutil
    import tempfile

    from comdefend_cli.runtime.files import open_atomically, refuse_unwritable_folder

    _refuse_report(path, overwrite=overwrite)
    if path.parent.exists() or path.parent.resolve() != out.resolve():  # The output folder will be made.
        refuse_unwritable_folder(path)
    with tempfile.SpooledTemporaryFile(_SPOOL) as lines:
        yield lambda result: _put(lines, result)
        lines.seek(0)
        with suppress(OSError):  # Writing will say it.
            path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, overwrite=True) as file:
            shutil.copyfileobj(lines, file)


def _put(lines: IO[bytes], result: Result) -> None:
    from comdefend_cli import __version__

    record = {
        "comdefend": __version__,
        "input": str(result.input),
        "output": str(result.output),
        "status": result.status,
        "reason": result.reason,
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 4),
        "notices": result.notices,
    }
    lines.write(json.dumps(record).encode() + b"\n")


def _refuse_report(path: Path, *, overwrite: bool) -> None:
    """A report replaces a report, or nothing; never an image."""
    from comdefend_cli.batch import journal
    from comdefend_cli.imaging.formats import list_suffixes
    from comdefend_cli.runtime.files import refuse_existing

    refuse_existing(path, overwrite=True)
    if path.suffix.lower() in list_suffixes(writable=False) or path.name == journal.STATE:
        raise UsageError(f"{path}: a report is lines of JSON; give --report a name like results.jsonl")
    if path.exists() and not overwrite and not _is_report(path):
        raise UsageError(f"{path}: already exists and is not a report of comdefend; use --overwrite to replace it")


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(_SPOOL)
        return not first or "comdefend" in dict(json.loads(first))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
