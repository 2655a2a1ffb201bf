"""`comdefend purify` on an image that is too large to be held: see :mod:`comdefend_cli.batch.strips`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli import console, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.work import purifier_record
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.batch.large_image import LargeImage
    from comdefend_cli.inference.purifier import Purifier, Settings
    from comdefend_cli.network.weight_file import Weights

#: Megapixels from which an image goes through in strips unasked, where all that is wanted can be had so.
LARGE = 50.0


def wanted(asked: bool | None, source: Path, target: Path, *, whole: bool, quiet: bool) -> bool:
    """Whether to go through in strips: as asked, or where the image is large and nothing that was asked for needs it whole.

    Raises:
        UsageError: strips are asked for with what needs the whole image.
    """
    if asked is False:
        return False
    dashes = "-" in (str(source), str(target))
    if asked:
        if dashes or whole:
            raise UsageError("--strips is from file to file, without --compare; leave that out")
        return True
    if dashes or whole or target.suffix.lower() not in (".png", ".tif", ".tiff") or not source.is_file():
        return False
    if not _is_large(source):
        return False
    from comdefend_cli.batch.large_image import can_read, is_installed

    if not can_read(source):
        return False
    if not is_installed():
        notice("an image this large takes less memory in strips: pip install 'comdefend-cli[large]'", quiet=quiet)
        return False
    return True


def _is_large(source: Path) -> bool:
    """By its header; whatever is wrong with the file, reading it as any other image will say it."""
    from PIL import Image

    from comdefend_cli.imaging.formats import find_readable_formats

    try:
        with Image.open(source, formats=find_readable_formats()) as image:
            return image.width * image.height > LARGE * 1e6
    except Exception:
        return False


def run(
    source: Path,
    target: Path,
    *,
    weights: str | None,
    device: str,
    precision: str,
    backend: str,
    settings: Settings,
    strip: bool,
    overwrite: bool,
    max_megapixels: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Purify from file to file, and print the record that was asked for."""
    from comdefend_cli.batch.large_image import open_large_image
    from comdefend_cli.batch.strips import purify_file
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import limit_threads

    limit_threads()
    image = open_large_image(source, max_megapixels=max_megapixels)
    if image.exif and not strip and target.suffix.lower() != ".png":
        image.notices.append("its EXIF block is left out: in strips, only PNG is written with one")
    for text in image.notices:
        notice(text, quiet=quiet)
    loaded = load_weights(weights or (DEFAULT_GRAY if image.gray else DEFAULT_COLOR))
    purifier = Purifier.from_weights([loaded], device=device, precision=precision, backend=backend, settings=settings)
    parameter = next(purifier.parameters())
    if device == "auto":
        notice(f"computing on {describe_device(parameter.device)} in {purifier.how}, in strips", quiet=quiet)
    began = time.perf_counter()
    with progress.pixels(image.width * image.height, shown=not quiet) as advance:
        error = purify_file(purifier, image, target, strip=strip, overwrite=overwrite, progress=advance)
    if as_json:
        where = {"input": str(source), "output": str(target)}
        console.print_json({**where, **_record(image, purifier, loaded, time.perf_counter() - began, error)})


def _record(image: LargeImage, purifier: Purifier, loaded: Weights, seconds: float, error: float) -> dict[str, Any]:
    """As of `comdefend purify`; seconds include reading and writing, and SSIM is not measured."""
    return {
        "width": image.width,
        "height": image.height,
        "channels": 1 if image.gray else 3,
        "alpha": image.alpha,
        "seconds": round(seconds, 4),
        "megapixels_per_second": round(image.width * image.height / 1e6 / seconds, 4),
        **purifier_record(purifier, loaded),
        "psnr_db": round(10 * math.log10(255**2 / error), 4) if error else None,
        "ssim": None,
        "notices": image.notices,
    }
