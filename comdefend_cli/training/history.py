"""What a run's steps showed, a column of numbers a figure: a million steps take 40 MB, in memory and in a checkpoint."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from comdefend_cli.training.loop import Report

#: What columns are called in a checkpoint.
PREFIX = "history."


class History:
    """The reports of a run, in order; what was not measured is NaN.

    Args:
        measure: the name of what reports measure.

    Attributes:
        columns: by name, "step" and "loss" first.
    """

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self.columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.columns.get("step", ()))

    def append(self, report: Report) -> None:
        """Add a report."""
        measured = {self.measure: report.measured, "images_per_second": report.images_per_second}
        self._add({"step": report.step, "loss": report.loss, **report.figures, **measured})

    def last_measured(self) -> float | None:
        """What was measured last, if anything was."""
        return next((value for value in reversed(self.columns.get(self.measure, ())) if not math.isnan(value)), None)

    def records(self) -> Iterator[dict[str, Any]]:
        """Each report's figures by name, as JSON values."""
        for row in zip(*self.columns.values(), strict=True):
            record = {name: None if math.isnan(value) else value for name, value in zip(self.columns, row, strict=True)}
            yield {**record, "step": int(record["step"] or 0)}

    def tensors(self) -> dict[str, Tensor]:
        """The columns, float64, named for a checkpoint."""
        return {PREFIX + name: torch.tensor(column, dtype=torch.float64) for name, column in self.columns.items()}

    def load(self, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take what a checkpoint has: such columns, or in its header, as older ones did, a list of records.

        Raises:
            KeyError, ValueError, TypeError: a column is missing, of another length than the others, or holds no numbers.
        """
        self.columns = {name: array("d", tensors[PREFIX + name].tolist()) for name in header.get("columns", ())}
        for record in header.get("history", ()):
            self._add(dict(record))
        if any(len(column) != len(self) for column in self.columns.values()):
            raise ValueError("its history has columns of unlike length")

    def _add(self, record: Mapping[str, float | None]) -> None:
        count = len(self)
        for name in {**self.columns, **record}:
            value = record.get(name)
            column = self.columns.setdefault(name, array("d", [math.nan]) * count)
            column.append(math.nan if value is None else value)
