"""`comdefend purify IN... -o OUT`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.naming import STANDARD, Pair, name_outputs
from comdefend_cli.cli.outputs import Output
from comdefend_cli.cli.purify_dir import purify_folder
from comdefend_cli.cli.purify_strips import choose_strips, purify_in_strips
from comdefend_cli.cli.work import Purifiers, describe_image
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS
from comdefend_cli.inference.settings import Settings

if TYPE_CHECKING:
    from comdefend_cli.imaging.raster import Raster
    from comdefend_cli.inference.purifier import Purifier


@console.command
def purify(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... [OUT]",
            help="Images, a folder, or - for standard input. Of exactly two names, the second is OUT; - is standard output.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Where to write: a file for one image, in the format of its ending, or a folder.",
            show_default="name.purified.png beside each image, DIR-purified for a folder",
        ),
    ] = None,
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
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            help="Also write one image of input, code, output and their difference, amplified.",
            **options.UNCHECKED,
        ),
    ] = None,
    recursive: options.Recursive = Options.recursive,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="png|jpg|...",
            help="Format, where OUT's name does not say it.",
            show_default="in a folder each file's own, else png",
        ),
    ] = None,
    quality: options.Quality = None,
    strip: options.Strip = False,
    overwrite: options.Overwrite = False,
    max_megapixels: options.MaxMegapixels = MAX_MEGAPIXELS,
    strips: Annotated[
        bool | None,
        typer.Option("--strips/--no-strips", help="Go from file to file in strips, in little memory.", show_default="over 50 megapixels"),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Purify images.

    Reads what Pillow reads; applies the EXIF orientation; keeps alpha, ICC profile, EXIF, XMP and IPTC. Grey images stay grey.
    """
    from comdefend_cli.imaging.reading import prepare_pillow

    console.show_warnings(quiet)
    prepare_pillow(max_megapixels)

    def make_request() -> Request:
        # PyTorch takes seconds to import: what can be said without it has been said.
        settings = Settings(tiling, tile, noise_std, seed, input_noise=input_noise, samples=samples)  # type: ignore[arg-type]  # Checked there.
        return Request(weights, device, precision, backend, settings)

    chosen = Options(recursive, format, quality, strip, overwrite, max_megapixels)
    if Path(names[0]).is_dir() and len(names) <= (2 if out is None else 1):
        if compare is not None or strips is not None:
            raise UsageError(f"{names[0]}: is a folder; --compare and --strips are for single images, leave them out")
        purify_folder(names[0], out if out is not None else [*names, None][1], chosen, make_request, as_json=as_json, quiet=quiet)
        return
    if recursive:
        raise UsageError("--recursive is for a folder; name one alone, or leave it out")
    _purify_files(names, out, chosen, make_request, compare=compare, strips=strips, as_json=as_json, quiet=quiet)


def _purify_files(
    names: list[str],
    out: str | None,
    chosen: Options,
    make_request: Callable[[], Request],
    *,
    compare: Path | None,
    strips: bool | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Purify single images; of several, one that fails does not stop the others."""
    if compare is not None and len(names) == 1 and compare.is_file() and not Path(names[0]).exists():
        raise UsageError(f"{names[0]}: no such file; --compare takes a file of its own to write: comdefend purify {compare} --compare FILE")
    pairs = name_outputs(names, out, chosen.ending, overwrite=chosen.overwrite)
    if compare is not None and len(pairs) > 1:
        raise UsageError("--compare is for one image; leave it out, or purify them one by one")
    if pairs[0].target == STANDARD and as_json:
        raise UsageError("--json and the image cannot both go to standard output; name a file for OUT")
    jobs = [Job(pair, Output.of(pair, chosen, compare), strips) for pair in pairs]
    for job in jobs:
        job.choose_strips(quiet=quiet)
    for job in jobs:
        job.output.refuse(job.pair.source, make_folder=not job.pair.named)
    failed = False
    purifiers = Purifiers(make_request, quiet=quiet)
    for job in jobs:
        try:
            record = job.run(purifiers, chosen.max_megapixels, measured=as_json, quiet=quiet)
        except ComdefendError as error:
            if len(jobs) == 1 or isinstance(error, UsageError):
                raise
            console.print_error(error)
            failed = True
            continue
        if as_json:
            console.print_json({"input": str(job.pair.source), "output": str(job.pair.target), **record})
    if failed:
        raise typer.Exit(ComdefendError.exit_code)


@dataclass
class Job:
    """One image on its way; `strips` is whether it goes in strips: as asked for, then as decided."""

    pair: Pair
    output: Output
    strips: bool | None

    def choose_strips(self, *, quiet: bool) -> None:
        """Decide, before the first image; errors as of :func:`.choose_strips`."""
        whole = self.output.compare is not None
        self.strips = choose_strips(self.strips, self.pair.source, self.pair.target, whole=whole, quiet=quiet)

    def run(self, purifiers: Purifiers, max_megapixels: float, *, measured: bool, quiet: bool) -> dict[str, Any]:
        """Purify and write; the record of it, with PSNR and SSIM if it is to be measured."""
        source, target, output = self.pair.source, self.pair.target, self.output
        if self.strips:
            return purify_in_strips(
                purifiers, source, target, strip=output.strip, overwrite=output.overwrite, max_megapixels=max_megapixels, quiet=quiet
            )
        image = _read(source, output, max_megapixels)
        for text in (*self.pair.notices, *image.notices):
            notice(text, quiet=quiet)
        return _purify_whole(purifiers, image, output, measured=measured, quiet=quiet)


def _read(source: Path, output: Output, max_megapixels: float) -> Raster:
    from comdefend_cli.imaging.reading import read_image
    from comdefend_cli.imaging.writing import fit_to_format

    image = read_image(console.read_in() if source == STANDARD else source, max_megapixels=max_megapixels)
    return fit_to_format(image, output.format, strip=output.strip)


def _purify_whole(purifiers: Purifiers, image: Raster, output: Output, *, measured: bool, quiet: bool) -> dict[str, Any]:
    """Purify an image in memory and write it; the record of it, with PSNR and SSIM if it is to be measured."""
    if output.compare is not None:
        _refuse_comparison(image, output.compare)
    purifier, weights = purifiers.make(gray=image.gray)
    began = time.perf_counter()
    cleaned = _run(purifier, image, quiet)
    seconds = time.perf_counter() - began
    output.write(cleaned, quiet)
    if output.compare is not None:
        from comdefend_cli.imaging.writing import write_image
        from comdefend_cli.inference.compare import draw_comparison

        write_image(output.compare, draw_comparison(purifier, image.pixels, cleaned.pixels), overwrite=output.overwrite)
    height, width, channels = image.pixels.shape
    console.print_done(
        output.target, width, height, weights.name, purifier.input_noise(weights.header.architecture.channels), seconds, quiet=quiet
    )
    if not measured:
        return {}
    fidelity = _measure_fidelity(image, cleaned)
    record = describe_image((height, width, channels), image.alpha is not None, seconds, purifier, weights, **fidelity)
    return {**record, "notices": image.notices}


def _refuse_comparison(image: Raster, path: Path) -> None:
    """Refuse a comparison that is too wide for its format."""
    from comdefend_cli.imaging.formats import find_format
    from comdefend_cli.imaging.limits import refuse_sides
    from comdefend_cli.inference.compare import measure_comparison

    refuse_sides(find_format(path), *measure_comparison(image.pixels.shape[1], image.pixels.shape[0]))


def _run(purifier: Purifier, image: Raster, quiet: bool) -> Raster:
    """The purified image, with a progress bar on a terminal."""
    import torch

    x = torch.from_numpy(image.pixels).permute(2, 0, 1)[None]
    with progress.show_pixels(x.shape[2] * x.shape[3], quiet=quiet) as update:
        cleaned = purifier.purify(x, update)
    return replace(image, pixels=cleaned[0].permute(1, 2, 0).contiguous().numpy())


def _measure_fidelity(image: Raster, cleaned: Raster) -> dict[str, float]:
    """PSNR in dB and SSIM of the result to the input."""
    import torch

    from comdefend_cli.network.metrics import psnr, ssim

    a, b = (torch.from_numpy(item.pixels).permute(2, 0, 1)[None] for item in (image, cleaned))
    return {"psnr_db": float(psnr(a, b)), "ssim": ssim(a, b)}
