"""`comdefend purify IN OUT`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress, purify_strips
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.work import purifier_record
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.imaging.raster import Raster
    from comdefend_cli.inference.purifier import Purifier, Settings
    from comdefend_cli.network.weight_file import Weights

STANDARD = Path("-")
#: Megapixels from which a progress bar is worth its place.
LONG_WORK = 0.5


@console.command
def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or - for standard input.", **options.UNCHECKED)],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Where to write it, in the format of its ending; - is standard output.", **options.UNCHECKED),
    ],
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
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            help="Also write one image of input, code, output and their difference, amplified.",
            **options.UNCHECKED,
        ),
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Format of standard output.", show_default="png")] = None,
    quality: options.Quality = None,
    strip: options.Strip = False,
    overwrite: options.Overwrite = False,
    max_megapixels: options.MaxMegapixels = 512,
    strips: Annotated[
        bool | None,
        typer.Option("--strips/--no-strips", help="In strips, from file to file, in little memory.", show_default="over 50 megapixels"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON record of what was done.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Purify one image.

    Reads what Pillow reads; applies the EXIF orientation; keeps alpha, ICC profile, EXIF, XMP and IPTC. Grey images stay grey.
    """
    from comdefend_cli.imaging.formats import LOSSY, find_format, refuse_misfit
    from comdefend_cli.imaging.limits import refuse_sides
    from comdefend_cli.imaging.reading import lift_pillow_limit, read_image
    from comdefend_cli.imaging.writing import encode_image, write_image

    console.show_warnings(quiet)
    lift_pillow_limit()
    if target == STANDARD and as_json:
        raise UsageError("--json and the image cannot both go to standard output; name a file for OUT")
    _refuse_outputs(source, target, compare, overwrite=overwrite)
    format_name = _format(target, format)
    if purify_strips.wanted(strips, source, target, whole=compare is not None, quiet=quiet):
        purify_strips.run(
            source,
            target,
            weights=weights,
            device=device,
            precision=precision,
            backend=backend,
            settings=_settings(tiling, tile, noise_std, seed, input_noise, samples),
            strip=strip,
            overwrite=overwrite,
            max_megapixels=max_megapixels,
            as_json=as_json,
            quiet=quiet,
        )
        return
    image = read_image(sys.stdin.buffer.read() if source == STANDARD else source, max_megapixels=max_megapixels)
    refuse_misfit(image, format_name)
    for text in image.notices:
        notice(text, quiet=quiet)

    # PyTorch takes seconds to import: what can be said without it has been said.
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import limit_threads

    limit_threads()
    if compare is not None:
        from comdefend_cli.inference.compare import comparison_width

        height, width = image.pixels.shape[:2]
        refuse_sides(find_format(compare), comparison_width(width), height)
    settings = _settings(tiling, tile, noise_std, seed, input_noise, samples)
    name = weights or (DEFAULT_GRAY if image.gray else DEFAULT_COLOR)
    loaded = load_weights(name)
    purifier = Purifier.from_weights([loaded], device=device, precision=precision, backend=backend, settings=settings)
    if device == "auto":
        notice(f"computing on {describe_device(next(purifier.parameters()).device)} in {purifier.how}", quiet=quiet)

    began = time.perf_counter()
    cleaned = _run(purifier, image, quiet)
    seconds = time.perf_counter() - began
    if format_name in LOSSY:
        notice(f"{LOSSY[format_name]} changes the purified pixels again; write .png to keep them exactly", quiet=quiet)
    _write(target, encode_image(cleaned, format_name, quality=quality, strip=strip), overwrite)
    if compare is not None:
        from comdefend_cli.inference.compare import comparison

        write_image(compare, comparison(purifier, image.pixels, cleaned.pixels), overwrite=overwrite)
    if as_json:
        where = {"input": str(source), "output": str(target)}
        console.print_json({**where, **_record(image, cleaned, purifier, loaded, seconds)})


def _settings(tiling: str, tile: int | None, noise_std: float, seed: int, input_noise: float | None, samples: int) -> Settings:
    from comdefend_cli.inference.purifier import Settings

    return Settings(tiling, tile, noise_std, seed, input_noise=input_noise, samples=samples)  # type: ignore[arg-type]  # Checked there.


def _record(image: Raster, cleaned: Raster, purifier: Purifier, loaded: Weights, seconds: float) -> dict[str, Any]:
    """What was done, for scripts; times in seconds, PSNR in dB."""
    height, width, channels = image.pixels.shape
    return {
        "width": width,
        "height": height,
        "channels": channels,
        "alpha": image.alpha is not None,
        "seconds": round(seconds, 4),
        "megapixels_per_second": round(image.megapixels / seconds, 4),
        **purifier_record(purifier, loaded),
        **_fidelity(image, cleaned),
        "notices": image.notices,
    }


def _refuse_outputs(source: Path, target: Path, compare: Path | None, *, overwrite: bool) -> None:
    """Find out before the work what would fail after it."""
    from comdefend_cli.imaging.formats import find_format
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

    if compare is not None:
        for path, name in ((source, "IN"), (target, "OUT")):
            if compare.resolve() == path.resolve():
                raise UsageError(f"{compare}: is {name} too; give --compare another file")
    for output in (target, compare):
        if output is not None and output != STANDARD:
            refuse_existing(output, overwrite=overwrite)
            find_format(output)
            refuse_unwritable_folder(output)


def _format(target: Path, wanted: str | None) -> str:
    from comdefend_cli.imaging.formats import find_format

    if target != STANDARD:
        if wanted is not None:
            raise UsageError("--format is for standard output; a file's format is its ending's")
        return find_format(target)
    return find_format(Path(f"standard-output.{(wanted or 'png').lstrip('.')}"))


def _run(purifier: Purifier, image: Raster, quiet: bool) -> Raster:
    """The purified image, with a progress bar where one is wanted."""
    import torch

    x = torch.from_numpy(image.pixels).permute(2, 0, 1)[None]
    with progress.pixels(x.shape[2] * x.shape[3], shown=not quiet and image.megapixels >= LONG_WORK) as update:
        cleaned = purifier.purify(x, update)
    return replace(image, pixels=cleaned[0].permute(1, 2, 0).contiguous().numpy())


def _write(target: Path, data: bytes, overwrite: bool) -> None:
    from comdefend_cli.runtime.files import write_atomically

    if target == STANDARD:
        console.write_out(data)
    else:
        write_atomically(target, data, overwrite=overwrite)


def _fidelity(image: Raster, cleaned: Raster) -> dict[str, float | None]:
    """PSNR in dB and SSIM of the result to the input; null where they are not finite."""
    import math

    import torch

    from comdefend_cli.network.metrics import psnr, ssim

    a, b = (torch.from_numpy(item.pixels).permute(2, 0, 1)[None] for item in (image, cleaned))
    values = {"psnr_db": float(psnr(a, b)), "ssim": ssim(a, b)}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}
