"""Whether what `comdefend purify` made of a file is right: against what Pillow itself decodes of it, or a refusal on one line.

In this process the network is put aside (:func:`without_network`), so that the output must hold the very pixels that went in.
"""

from __future__ import annotations

import io
import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile, ImageOps
from typer.main import get_command
from typer.testing import CliRunner

from comdefend_cli.batch.request import Request
from comdefend_cli.cli import app
from comdefend_cli.cli.work import Purifiers
from comdefend_cli.imaging.formats import find_readable_formats
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS
from comdefend_cli.inference.purifier import Purifier

#: Seconds after which a file counts as one that hangs the command.
PATIENCE = 60
#: What a command may take above the memory that the process had before: bytes, and bytes a pixel and a byte of the file.
MEMORY, MEMORY_A_PIXEL, MEMORY_A_BYTE = 64 * 2**20, 40, 4
#: Modes of Pillow's whose conversion to 8 bits or RGB is a matter of choice; their pixels are compared only roughly.
CHOSEN = ("CMYK", "LAB", "HSV", "YCbCr", "I", "F")


@dataclass(frozen=True)
class Decoded:
    """What Pillow makes of a file: uint8 pixels (H, W) or (H, W, 3), alpha (H, W) or None, profile, and its mode."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    icc: bytes | None
    mode: str
    format: str

    @property
    def gray(self) -> bool:
        """Whether it has one channel."""
        return self.pixels.ndim == 2


@dataclass(frozen=True)
class Ran:
    """What a command did: exit code, what it said, seconds, bytes of memory above what was there before."""

    code: int
    said: str
    seconds: float = 0.0
    memory: int = 0
    crash: str = ""


_RUNNER = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"})
_LOADER = Purifiers(Request, quiet=True)


class Hang(BaseException):
    """Raised by the clock; no decoder's own guard may catch it."""


def decode(data: bytes, most: float = 32e6) -> Decoded | str:
    """A file as Pillow decodes it, upright; or why it does not. Images of more than `most` pixels are not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, most)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _decode(data: bytes, most: float) -> Decoded | str:
    with Image.open(io.BytesIO(data), formats=find_readable_formats()) as opened:
        image: Image.Image = opened
        if image.width * image.height > most:
            return "too large"
        name, arguments = image.format or "", str(image.tile[0].args) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
        image.load()
        with suppress(Exception):  # An orientation that cannot be read is none.
            image = ImageOps.exif_transpose(image)
        mode, icc = image.mode, image.info.get("icc_profile")
        # An icon may have a palette that Pillow does not know of.
        clear = not (mode == "P" and image.palette is None) and image.has_transparency_data
        image = image.convert("LA") if mode == "La" else image
        alpha = np.array(image.convert("RGBA"))[..., 3] if clear else None
        deep = mode.startswith("I;16") or (mode == "I" and np.array(image).max(initial=0) > 255)
        if deep or mode == "F":
            values = np.array(image).astype(np.float64)
            pixels = np.floor(values / (257 if deep else 1 / 255) + 0.5).clip(0, 255).astype(np.uint8)
        elif mode in ("1", "L", "LA", "La", "I") or arguments == "LA;16B":
            pixels = np.array(image.convert("L"))
        else:
            pixels = np.array(image.convert("RGBA" if alpha is not None else "RGB"))[..., :3]
            if mode in ("P", "PA") and (pixels == pixels[..., :1]).all():
                pixels = pixels[..., 0]
        return Decoded(pixels, alpha, icc, mode, name)


@contextmanager
def without_network() -> Iterator[None]:
    """Let a purifier give back what it is given, and be made once."""
    load = cache(Purifiers._load)
    with (
        patch("typer.testing._get_command", cache(get_command)),  # It would build all commands anew each time.
        patch.object(Purifier, "purify", lambda self, x, *_, **__: x),
        patch.object(Purifiers, "_load", lambda self, request, name: load(_LOADER, request, name)),
    ):
        yield


def run_here(*arguments: str, patience: int = PATIENCE) -> Ran:
    """Run the command in this process, for so many seconds at most."""

    def end(*_: Any) -> None:
        raise Hang

    before = _reset_peak()
    signal.signal(signal.SIGALRM, end)
    signal.alarm(patience)
    began = time.perf_counter()
    try:
        result = _RUNNER.invoke(app, arguments)
        crash = repr(result.exception) if result.exception and not isinstance(result.exception, SystemExit) else ""
        code, said = result.exit_code, result.stderr
    except Hang:
        code, said, crash = -1, "", "hang"
    finally:
        signal.alarm(0)
    return Ran(code, said, time.perf_counter() - began, max(0, _read_memory("VmHWM") - before), crash)


def judge(ran: Ran, data: bytes, out: Path, expected: Decoded | str, *, same_pixels: bool) -> str:
    """What is to be said of a command that was to write `out`: "correct", "refused", or what is wrong.

    Args:
        same_pixels: whether the network was put aside.
    """
    if ran.crash or "Traceback" in ran.said:
        return f"crash: {ran.crash or ran.said.splitlines()[-1]}"
    left = [path.name for path in out.parent.iterdir() if path != out]
    if left:
        return "leaves files behind"
    if ran.memory > MEMORY + MEMORY_A_PIXEL * count_pixels(data) + MEMORY_A_BYTE * len(data):
        return f"memory: {ran.memory >> 20} MB"
    errors = [line for line in ran.said.splitlines() if not line.startswith("note: ")]
    if ran.code:
        if out.exists():
            return "fails, and leaves an output"
        return "refused" if ran.code == 1 and len(errors) == 1 and errors[0].startswith("error: ") else f"says: {ran.said!r}"
    return compare(out, expected, same_pixels=same_pixels) if isinstance(expected, Decoded) else "recovered"


def count_pixels(data: bytes) -> int:
    """The pixels that the header of a file claims, for which a decoder may take memory; none where they are more than are decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=find_readable_formats()) as image:
            pixels = image.width * image.height
    except Exception:
        return 0
    return pixels if pixels <= MAX_MEGAPIXELS * 1e6 else 0


def compare(out: Path, expected: Decoded, *, same_pixels: bool) -> str:
    """What differs between an output and what Pillow decoded of the input; "correct" for nothing that counts."""
    found = decode(out.read_bytes())
    if isinstance(found, str):
        return f"the output is damaged: {found}"
    if found.pixels.shape[:2] != expected.pixels.shape[:2]:
        return f"size: {found.pixels.shape[:2]} for {expected.pixels.shape[:2]}"
    if found.gray != expected.gray:
        return "grey became colour" if expected.gray else "colour became grey"
    if (found.alpha is None) != (expected.alpha is None):
        return "alpha"
    if found.alpha is not None and expected.alpha is not None and not np.array_equal(found.alpha, expected.alpha):
        return "alpha"
    kind = b"GRAY" if expected.gray else b"RGB "
    fits = expected.icc if expected.icc and expected.icc[16:20] == kind and expected.mode != "CMYK" else None
    if found.icc != fits:
        return "profile"
    if not same_pixels or expected.mode in CHOSEN:
        return "correct"
    return "correct" if np.array_equal(found.pixels, expected.pixels) else "pixels"


def name_reason(said: str) -> str:
    """The kind of a refusal: its words without names and numbers."""
    line = next((line for line in said.splitlines() if line.startswith("error: ")), "")
    text = re.sub(r"^error: .*?: ", "", line) if line.count(": ") > 1 else line
    return re.sub(r"\d[\d.,x]*", "N", text)[:140]


def _reset_peak() -> int:
    """Let the peak of memory begin anew; bytes in use."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _read_memory("VmRSS")


def _read_memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
