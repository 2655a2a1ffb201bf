"""`comdefend purify IN OUT`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.batch.request import Request
from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.purify_strips import choose_strips, purify_in_strips
from comdefend_cli.cli.work import describe_image, make_purifier
from comdefend_cli.errors import UsageError
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS
from comdefend_cli.inference.settings import Settings

if TYPE_CHECKING:
    from comdefend_cli.imaging.raster import Raster
    from comdefend_cli.inference.purifier import Purifier

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
    format: Annotated[str | None, typer.Option("--format", help="Format of standard output.", show_default="png")] = None,
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
    """Purify one image.

    Reads what Pillow reads; applies the EXIF orientation; keeps alpha, ICC profile, EXIF, XMP and IPTC. Grey images stay grey.
    """
    from comdefend_cli.imaging.reading import lift_pillow_limit

    console.show_warnings(quiet)
    lift_pillow_limit()
    if target == STANDARD and as_json:
        raise UsageError("--json and the image cannot both go to standard output; name a file for OUT")
    output = Output(target, format, compare, quality, strip, overwrite)
    refuse_absent_image(source, target)
    output.refuse(source)
    in_strips = choose_strips(strips, source, target, whole=compare is not None, quiet=quiet)
    image = None if in_strips else _read(source, output, max_megapixels, quiet)

    # PyTorch takes seconds to import: what can be said without it has been said.
    settings = Settings(tiling, tile, noise_std, seed, input_noise=input_noise, samples=samples)  # type: ignore[arg-type]  # Checked there.
    request = Request(weights, device, precision, backend, settings)
    if image is None:
        record = purify_in_strips(request, source, target, strip=strip, overwrite=overwrite, max_megapixels=max_megapixels, quiet=quiet)
    else:
        record = _purify_whole(request, image, output, measured=as_json, quiet=quiet)
    if as_json:
        console.print_json({"input": str(source), "output": str(target), **record})


@dataclass(frozen=True)
class Output:
    """What is to be written, and how, as the options say; `wanted` is the format of standard output."""

    target: Path
    wanted: str | None
    compare: Path | None
    quality: int | None
    strip: bool
    overwrite: bool

    @property
    def format(self) -> str:
        """Pillow's name of OUT's format."""
        from comdefend_cli.imaging.formats import find_format

        if self.target == STANDARD:
            return find_format(Path(f"standard-output.{(self.wanted or 'png').lstrip('.')}"))
        if self.wanted is not None:
            raise UsageError("--format is for standard output; a file's format is its ending's")
        return find_format(self.target)

    def refuse(self, source: Path) -> None:
        """Find out before the work what would fail after it."""
        from comdefend_cli.imaging.formats import find_format, refuse_quality
        from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

        if self.compare is not None:
            for path, name in ((source, "IN"), (self.target, "OUT")):
                if self.compare.resolve() == path.resolve():
                    raise UsageError(f"{self.compare}: is {name} too; give --compare another file")
        for output in (self.target, self.compare):
            if output is not None and output != STANDARD:
                refuse_existing(output, overwrite=self.overwrite)
                find_format(output)
                refuse_unwritable_folder(output)
        refuse_quality(self.format, self.quality)  # Also what is wrong with `wanted`.

    def write(self, cleaned: Raster, quiet: bool) -> None:
        """Write OUT; its format may change it again."""
        from comdefend_cli.imaging.formats import LOSSY
        from comdefend_cli.imaging.writing import encode_image
        from comdefend_cli.runtime.files import write_atomically

        if self.format in LOSSY:
            notice(f"{LOSSY[self.format]} changes the purified pixels again; write .png to keep them exactly", quiet=quiet)
        data = encode_image(cleaned, self.format, quality=self.quality, strip=self.strip)
        if self.target == STANDARD:
            console.write_out(data)
        else:
            write_atomically(self.target, data, overwrite=self.overwrite)


def refuse_absent_image(source: Path, target: Path | None) -> None:
    """Raise :class:`UsageError` where IN is not there; where OUT is, the two may have been swapped."""
    from comdefend_cli.runtime.files import refuse_absent

    if source == STANDARD:
        return
    swapped = target is not None and target != STANDARD and target.is_file()
    remedy = f"OUT is there: did you mean comdefend purify {target} {source}?" if swapped else "name an image that is there"
    refuse_absent(source, f"no such file; {remedy}")


def _read(source: Path, output: Output, max_megapixels: float, quiet: bool) -> Raster:
    from comdefend_cli.imaging.formats import refuse_misfit
    from comdefend_cli.imaging.reading import read_image

    image = read_image(sys.stdin.buffer.read() if source == STANDARD else source, max_megapixels=max_megapixels)
    refuse_misfit(image, output.format)
    for text in image.notices:
        notice(text, quiet=quiet)
    return image


def _purify_whole(request: Request, image: Raster, output: Output, *, measured: bool, quiet: bool) -> dict[str, Any]:
    """Purify an image in memory and write it; the record of it, with PSNR and SSIM if it is to be measured."""
    if output.compare is not None:
        _refuse_comparison(image, output.compare)
    purifier, weights = make_purifier(request, gray=image.gray, quiet=quiet)
    began = time.perf_counter()
    cleaned = _run(purifier, image, quiet)
    seconds = time.perf_counter() - began
    output.write(cleaned, quiet)
    if output.compare is not None:
        from comdefend_cli.imaging.writing import write_image
        from comdefend_cli.inference.compare import draw_comparison

        write_image(output.compare, draw_comparison(purifier, image.pixels, cleaned.pixels), overwrite=output.overwrite)
    if not measured:
        return {}
    fidelity = _measure_fidelity(image, cleaned)
    height, width, channels = image.pixels.shape
    record = describe_image((height, width, channels), image.alpha is not None, seconds, purifier, weights, **fidelity)
    return {**record, "notices": image.notices}


def _refuse_comparison(image: Raster, path: Path) -> None:
    """Refuse a comparison that is too wide for its format."""
    from comdefend_cli.imaging.formats import find_format
    from comdefend_cli.imaging.limits import refuse_sides
    from comdefend_cli.inference.compare import measure_comparison

    height, width = image.pixels.shape[:2]
    refuse_sides(find_format(path), measure_comparison(width), height)


def _run(purifier: Purifier, image: Raster, quiet: bool) -> Raster:
    """The purified image, with a progress bar where one is wanted."""
    import torch

    x = torch.from_numpy(image.pixels).permute(2, 0, 1)[None]
    with progress.show_pixels(x.shape[2] * x.shape[3], shown=not quiet and image.megapixels >= LONG_WORK) as update:
        cleaned = purifier.purify(x, update)
    return replace(image, pixels=cleaned[0].permute(1, 2, 0).contiguous().numpy())


def _measure_fidelity(image: Raster, cleaned: Raster) -> dict[str, float]:
    """PSNR in dB and SSIM of the result to the input."""
    import torch

    from comdefend_cli.network.metrics import psnr, ssim

    a, b = (torch.from_numpy(item.pixels).permute(2, 0, 1)[None] for item in (image, cleaned))
    return {"psnr_db": float(psnr(a, b)), "ssim": ssim(a, b)}
