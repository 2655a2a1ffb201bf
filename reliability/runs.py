"""Runs of the command in processes of their own, small enough for hundreds, that are disturbed and gone on with."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from processes import Ended, disturb

#: The journal of `purify-dir`, which stays, and tells times.
JOURNAL = ".comdefend-state.jsonl"
ENDINGS = (".png", ".bmp", ".tif", ".jpg")


@dataclass(frozen=True)
class Kind:
    """A command to disturb.

    Attributes:
        name: of the command.
        arguments: of it, from the folder of images and the folder of outputs.
        resume: from the folder of outputs, what more is said to go on; None where nothing is left to do.
        first: pattern of files that are there from the work's beginning on.
        summary: what a run that was asked to end says, once it worked.
    """

    name: str
    arguments: Callable[[Path, Path], list[object]]
    resume: Callable[[Path], list[str] | None]
    first: str
    summary: tuple[str, ...]

    def says_summary(self, said: str) -> bool:
        """Whether what it said tells how far it came."""
        return any(text in said for text in self.summary)


def list_training(source: Path, out: Path) -> list[object]:
    """A training of narrow networks on the folder's images."""
    small = {"arch": "residual", "width": 8, "blocks": 0, "crop": 16, "steps": 600, "batch-size": 2}
    chosen = {**small, "checkpoint-every": 20, "validate-every": 50, "device": "cpu", "precision": "float32", "out": out / "w.safetensors"}
    return ["train", "--data", source, "--no-download", *(part for name, value in chosen.items() for part in (f"--{name}", value))]


def resume_training(out: Path) -> list[str] | None:
    """As a person does: from the checkpoint where there is one, anew where nothing was begun, and not at all where all is there."""
    if (out / "w.checkpoint").exists():
        return ["--resume"]
    return None if (out / "w-pictures.png").exists() else []


KINDS = (
    Kind(
        "purify-dir",
        lambda source, out: ["purify-dir", source, "--out", out, "--device", "cpu", "--precision", "float32", "--backend", "torch"],
        lambda out: [],
        "*.*",
        ("interrupted: ",),
    ),
    Kind("train", list_training, resume_training, "w*.*", ("stopped after step", "interrupted")),
)


class Run:
    """One command over and over: disturbed, gone on with, and compared with an undisturbed run of it.

    Attributes:
        seconds: that an undisturbed run takes, forked and (True) as a person starts it.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.source, self.out, self.temporary = kind, folder / "in", folder / "out", folder / "tmp"
        self.seconds: dict[bool, float] = {}
        self.expected: dict[str, bytes] = {}
        self.usual: set[str] = set()  # PyTorch's folder for compiled code, say.
        self._began = 0  # When the last process was started, in nanoseconds.
        make_images(self.source, 120)
        for cold in (True, True, False, False):  # The first of each imports, and may write Python's bytecode.
            self.clear()
            began = time.monotonic()
            ended = self.disturb(signal.SIGKILL, 600, cold=cold)
            if ended.code:
                raise RuntimeError(f"an undisturbed run ends with {ended.code}: {ended.said}")
            self.seconds[cold] = time.monotonic() - began
            found = self._list_files()
            if self.expected and found != self.expected:
                raise RuntimeError("two undisturbed runs differ")
            self.expected = found
            self.usual |= {path.name for path in self.temporary.iterdir()}

    def clear(self) -> None:
        """An empty output folder."""
        for path in (self.out, self.temporary):
            shutil.rmtree(path, ignore_errors=True)
        self.temporary.mkdir()
        if self.kind.name == "train":
            self.out.mkdir()

    def disturb(self, number: signal.Signals, after: float, *, cold: bool) -> Ended:
        """Run it from where it is, with a signal after so many seconds."""
        arguments = map(str, self.kind.arguments(self.source, self.out))
        self._began = time.time_ns()
        return disturb([*arguments, *(self.kind.resume(self.out) or [])], number, after, cold=cold, TMPDIR=str(self.temporary))

    def finish(self) -> Ended:
        """Run it to its end, unless nothing is left to do."""
        return Ended(0, "") if self.kind.resume(self.out) is None else self.disturb(signal.SIGKILL, 600, cold=False)

    def find_stage(self) -> str:
        """How far the last process came: starting until it wrote something, working, writing if a half-written file is left, or ending."""
        names = {path.name for path in self.out.glob("*")}
        if self.expected.keys() <= names:
            return "ending"
        if any(name.endswith(".part") for name in names):
            return "writing"
        written = [path for path in self.out.glob(self.kind.first) if path.name[0] != "."]
        # What an earlier process wrote says nothing of this one.
        return "working" if any(path.stat().st_mtime_ns > self._began for path in written) else "starting"

    def compare(self) -> list[str]:
        """What is not as an undisturbed run leaves it, temporary files too."""
        found = self._list_files()
        wrong = [name for name in sorted(found.keys() | self.expected.keys()) if found.get(name) != self.expected.get(name)]
        return [f"differs: {name}" for name in wrong] + [f"left: {path}" for path in self.list_litter()]

    def list_litter(self) -> list[str]:
        """Hidden files, and temporary ones that an undisturbed run does not leave."""
        hidden = [path for path in self.out.rglob(".*") if path.name != JOURNAL] if self.out.is_dir() else []
        return [path.name for path in [*hidden, *self.temporary.rglob("*")] if path.name not in self.usual]

    def _list_files(self) -> dict[str, bytes]:
        paths = [path for path in self.out.rglob("*") if path.is_file() and path.name[0] != "."] if self.out.is_dir() else []
        return {str(path.relative_to(self.out)): _read_without_times(path) for path in paths}


def make_images(folder: Path, count: int, least: int = 16, most: int = 96, seed: int = 0) -> None:
    """Images of noise over a gradient, colour and grey, in several formats and sizes."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        height, width = draw.integers(least, most + 1, 2)
        ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * 2
        pixels = ((ramp + draw.integers(0, 64, (height, width, 3))) % 256).astype(np.uint8)
        image = Image.fromarray(pixels if index % 5 else pixels[..., 0])
        image.save(folder / f"{index:03}{ENDINGS[index % len(ENDINGS)]}")


def _read_without_times(path: Path) -> bytes:
    """A file's content; of the log of a training, without how fast it was."""
    if path.suffix != ".json":
        return path.read_bytes()
    log = json.loads(path.read_text())
    for each in log["history"]:
        each.pop("images_per_second", None)
    return json.dumps(log).encode()
