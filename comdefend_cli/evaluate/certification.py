"""Certificates of many images: rows as in the literature, a file that a later run goes on with, and what they come to."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from comdefend_cli.data.labelled import Labelled
from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.integrations.grid_noise import bound_share, find_radius, make_stream
from comdefend_cli.integrations.smoothed import Smoothed
from comdefend_cli.runtime.files import make_write_error, write_atomically

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
#: L2 radii of the table, pixels in [0, 1]; those of L-infinity balls of so many levels are added where they can be certified.
RADII = (0.25, 0.5, 0.75, 1.0)
LEVELS = (1, 2)


class InPrecision(nn.Module):
    """A classifier computed in a number format, channels last: twice to three times as fast on CPUs that have bfloat16.

    Args:
        classifier: from (N, C, H, W) to logits; it stays in float32 itself.
        precision: "float32", "bfloat16" or "float16".
    """

    def __init__(self, classifier: nn.Module, precision: str) -> None:
        super().__init__()
        self.classifier = classifier
        self._dtype = getattr(torch, precision)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, of float32 images (N, C, H, W)."""
        with torch.autocast(x.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return cast(Tensor, self.classifier(x.contiguous(memory_format=torch.channels_last))).float()


@dataclass(frozen=True)
class Row:
    """What was certified of one image.

    Attributes:
        idx: its place in the sample.
        label: the true class.
        predict: the smoothed classifier's, or -1 where it abstains.
        radius: certified, L2, pixels in [0, 1]; 0 where it abstains.
        correct: whether predict is label.
        seconds: that it took.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: bool
    seconds: float

    def to_line(self) -> str:
        """As a line of the file, without its end; time as h:mm:ss and a fraction."""
        radius = math.floor(self.radius * 1e6) / 1e6  # Never more than what is certified.
        fields = (self.idx, self.label, self.predict, f"{radius:.6f}", int(self.correct), timedelta(seconds=self.seconds))
        return "\t".join(map(str, fields))

    @classmethod
    def from_line(cls, line: str) -> Row:
        """The row of a line.

        Raises:
            ValueError: it is none.
        """
        idx, label, predict, radius, correct, spent = line.split("\t")
        hours, minutes, seconds = spent.split(":")
        total = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        row = cls(int(idx), int(label), int(predict), float(radius), correct == "1", total)
        if row.correct != (row.predict == row.label) or row.radius < 0:
            raise ValueError("a row that contradicts itself")
        return row


class RowFile:
    """Rows on disk: settings as lines "# name: value", the columns' names, a line an image; written as they come.

    Args:
        path: the file.
        settings: all that decides the rows, but for the images.
        data: the images; a file of fewer of them, the first ones, is gone on with.
        overwrite: begin anew in place of what other settings wrote.

    Attributes:
        rows: those that are there, by `idx`.

    Raises:
        UsageError: the file is of other settings or images, or is no such file.
        ComdefendError: it cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], data: Labelled, *, overwrite: bool = False) -> None:
        self._path, self._settings, self._data = path, settings, data
        self.rows: dict[int, Row] = {}
        if path.exists() and not overwrite:
            self.rows = self._read()
        head = self._make_head(len(data))
        # Also drops a line that was cut off when an earlier run was.
        lines = "".join(row.to_line() + "\n" for row in self.rows.values())
        write_atomically(path, (head + lines).encode(), overwrite=True)

    def _make_head(self, images: int) -> str:
        """What stands above the rows of the first so many images."""
        about = {**self._settings, "images": images, "images sha256": self._data.first(images).sha256}
        return "".join(f"# {name}: {json.dumps(value)}\n" for name, value in about.items()) + "\t".join(COLUMNS) + "\n"

    def _read(self) -> dict[int, Row]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ComdefendError(f"{self._path}: cannot be read: {explain(error)}; write elsewhere with --out") from error
        columns = "\t".join(COLUMNS) + "\n"
        if text.startswith("# ") and text.endswith(columns):  # Settings alone: a run that ended before its first image.
            return {}
        before = re.search(r"^# images: (\d{1,9})$", text, re.MULTILINE)
        if before and int(before[1]) > len(self._data):
            raise UsageError(f"{self._path}: has certificates of more images, {before[1]}; use --overwrite, or another --out")
        head = self._make_head(int(before[1]) if before else len(self._data))
        if not text.startswith(head):
            changed = ", ".join(_list_changes(text, head)) or "columns"
            raise UsageError(f"{self._path}: has certificates of other settings ({changed}); use --overwrite, or another --out")
        whole, _, _ = text[len(head) :].rpartition("\n")
        try:
            rows = [Row.from_line(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UsageError(f"{self._path}: is damaged ({explain(error)}); use --overwrite to begin anew") from error
        return {row.idx: row for row in rows}

    def add(self, row: Row) -> None:
        """Write one more.

        Raises:
            ComdefendError: it cannot be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(row.to_line() + "\n")
        except OSError as error:
            raise make_write_error(str(self._path), error) from error
        self.rows[row.idx] = row


def _list_changes(text: str, head: str) -> list[str]:
    """Names of the settings above the rows that two files do not share."""
    before, now = (
        dict(line[2:].partition(": ")[::2] for line in each.splitlines() if line.startswith("# ") and ": " in line) for each in (text, head)
    )
    return [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]


def certify_images(smoothed: Smoothed, data: Labelled, file: RowFile) -> Iterator[Row]:
    """Certify the images that the file does not have yet, and put them there, yielding each.

    The noise of an image is that of `smoothed.seed` and its place alone, or, without a seed, nobody's to know.
    """
    for idx in range(len(data)):
        if idx in file.rows:
            continue
        began = time.perf_counter()
        found = smoothed.certify_one(data.pixels[idx], make_stream(smoothed.seed, idx))
        label = int(data.labels[idx])
        row = Row(idx, label, found.label, found.radius, found.label == label, time.perf_counter() - began)
        file.add(row)
        yield row


def list_radii(shape: Sequence[int], sigma: float, n: int, alpha: float) -> dict[str, float]:
    """The radii of a table by what they are called: 0, and of `RADII` and L-infinity balls those that so many draws can certify at all.

    Args:
        shape: of an image, (C, H, W).
        sigma, n, alpha: as of :class:`.Smoothed`.
    """
    values = torch.Size(shape).numel()
    balls = {f"{values**0.5 * level / 255:.3f} (L-infinity {level}/255)": values**0.5 * level / 255 for level in LEVELS}
    most = find_radius(sigma, bound_share(n, n, alpha))
    named = {f"{radius:g}": radius for radius in RADII} | balls
    return {"0": 0.0, **dict(sorted((item for item in named.items() if item[1] < most), key=lambda item: item[1]))}


def sum_up(rows: Sequence[Row], radii: Mapping[str, float]) -> list[dict[str, Any]]:
    """Certified accuracy at each radius: images classified right with at least that radius, in percent, with Wilson's 95 % interval.

    At radius 0 that is the accuracy of the smoothed classifier where abstaining counts as wrong.
    """
    table = []
    for name, radius in radii.items():
        held = sum(row.correct and row.radius >= radius for row in rows)
        table.append({"name": name, "radius": round(radius, 4), "held": held, "n": len(rows), **compute_percentages(held, len(rows))})
    return table


def draw_curve(rows: Sequence[Row], sigma: float, bare: float, path: Path) -> None:
    """Write a PNG of certified accuracy against radius with its 95 % band, and the bare classifier's clean accuracy, in percent.

    Raises:
        UsageError: matplotlib or SciPy is not installed.
        ComdefendError: it cannot be written.
    """
    import io

    from comdefend_cli.evaluate.reporting.drawing import RC
    from comdefend_cli.runtime.extras import require

    require("matplotlib", extra="evaluate")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    most = max([row.radius for row in rows if row.correct], default=0.0)
    places = [most * 1.05 * step / 200 for step in range(201)]
    shares = [sum_up(rows, {"": place})[0] for place in places]
    with rc_context(RC):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        low, high = ([share[name] for share in shares] for name in ("low", "high"))
        axes.fill_between(places, low, high, alpha=0.2, linewidth=0, color="#1f6f8b")
        axes.plot(places, [share["accuracy"] for share in shares], color="#1f6f8b", label=f"certified, sigma {sigma:g}")
        axes.axhline(bare, color="#888888", linewidth=1, linestyle="--", label="clean, without smoothing")
        axes.set(xlabel="L2 radius (pixels in [0, 1])", ylabel="accuracy, %", ylim=(0, 100), xlim=(0, max(places[-1], 0.01)))
        axes.set_title(f"Certified accuracy, n = {len(rows)}")
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, metadata={"Software": None})
    write_atomically(path, buffer.getvalue(), overwrite=True)
