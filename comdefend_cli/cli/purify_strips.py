"""`comdefend purify` on an image that is too large to be held: see `comdefend_cli.batch.strips`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli import console, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.work import describe_image
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.cli.work import Purifiers

#: Megapixels from which an image goes through in strips unasked, where all that is wanted can be had so.
LARGE = 50.0
#: Endings of what is written in strips.
ENDINGS = (".png", ".tif", ".tiff")


def choose_strips(asked: bool | None, source: Path, target: Path, *, whole: bool, quiet: bool) -> bool:
    """Whether to go through in strips: as asked, or where the image is large and nothing that was asked for needs it whole.

    Raises:
        UsageError: strips are asked for with what needs the whole image, or is not written in them.
    """
    if asked is False:
        return False
    dashes = "-" in (str(source), str(target))
    if asked:
        if dashes or whole:
            raise UsageError("--strips is from file to file, without --compare; leave that out")
        if target.suffix.lower() not in ENDINGS:
            raise UsageError(f"{target}: --strips writes .png or .tiff; name such a file, add --format png, or leave --strips out")
        return True
    if dashes or whole or target.suffix.lower() not in ENDINGS or not source.is_file():
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


def purify_in_strips(
    purifiers: Purifiers, source: Path, target: Path, *, strip: bool, overwrite: bool, max_megapixels: float, quiet: bool
) -> dict[str, Any]:
    """Purify from file to file; the record of it, whose seconds include reading and writing, and whose SSIM is not measured."""
    from comdefend_cli.batch.large_image import open_large_image
    from comdefend_cli.batch.strips import purify_file

    image = open_large_image(source, max_megapixels=max_megapixels)
    if image.exif and not strip and target.suffix.lower() != ".png":
        image.notices.append("its EXIF block is left out: in strips, only PNG is written with one")
    if image.iptc and not strip:
        image.notices.append("its IPTC block is left out: in strips, no file is written with one")
    for text in image.notices:
        notice(text, quiet=quiet)
    purifier, weights = purifiers.make(gray=image.gray, how=", in strips")
    began = time.perf_counter()
    with progress.show_pixels(image.width * image.height, quiet=quiet) as advance:
        error = purify_file(purifier, image, target, strip=strip, overwrite=overwrite, progress=advance)
    seconds = time.perf_counter() - began
    console.print_done(
        target, image.width, image.height, weights.name, purifier.input_noise(weights.header.architecture.channels), seconds, quiet=quiet
    )
    shape = image.height, image.width, 1 if image.gray else 3
    psnr_db = 10 * math.log10(255**2 / error) if error else math.inf
    record = describe_image(shape, image.alpha, seconds, purifier, weights, psnr_db=psnr_db, ssim=None)
    return {**record, "notices": image.notices}
