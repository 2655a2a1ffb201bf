"""Measuring the lines of a table under the grey-box attacks of its columns, and writing them down beside the paper's numbers."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from options import ATTACKS, add_evaluation, add_folder, add_weights, parser
from published import CLEAN, Column, Table
from side_by_side import Reasons, beside, grid, interval
from systems import Line, lines_of_imagenet

from comdefend_cli.data.labelled import Labelled, load_labelled
from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.evaluate.attacks.recipes import name_attack
from comdefend_cli.evaluate.cache import Cache
from comdefend_cli.evaluate.cells import GRAY_BOX, Cell
from comdefend_cli.evaluate.evaluation import Evaluation
from comdefend_cli.evaluate.protocol import Protocol
from comdefend_cli.evaluate.systems import System
from comdefend_cli.runtime.device import describe_device, resolve_device
from comdefend_cli.runtime.files import write_atomically

SECONDS_BETWEEN_REPORTS = 20.0
LEFT_OUT = "left out by --attacks"


@dataclass
class Measured:
    """What was measured.

    Attributes:
        attacks: those that were asked for.
        cells: by classifier, defence, attack and epsilon.
        results: what each evaluation says of itself, fit for JSON.
        seconds: in all.
    """

    attacks: tuple[str, ...]
    cells: dict[tuple[str, str, str, float | None], Cell] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def cell(self, line: Line, attack: str, epsilon: float | None) -> Cell | None:
        """The cell of a line, or None where it was not measured."""
        if line.system is None:
            return None
        names = line.system.classifier.name, line.system.defence.name
        return self.cells.get((*names, attack, None if attack == CLEAN else epsilon))

    def why(self, line: Line) -> str:
        """Why a line lacks a cell."""
        return line.why or LEFT_OUT


def chosen_attacks(columns: tuple[Column, ...], asked: str | None) -> tuple[str, ...]:
    """The attacks of some columns, or those of them that were asked for.

    Raises:
        UsageError: an unknown name.
    """
    there = tuple(dict.fromkeys(column.attack for column in columns if column.attack))
    if asked is None:
        return there
    names = [name_attack(name) for name in asked.replace(" ", "").split(",") if name]
    if unknown := [name for name in names if name not in ATTACKS]:
        raise UsageError(f"{unknown[0]}: in none of these tables; use some of {', '.join(ATTACKS)}")
    return tuple(name for name in there if name in names)


def measure(columns: tuple[Column, ...], lines: list[Line], data: Labelled, arguments: argparse.Namespace) -> Measured:
    """Every line on clean images and under the attacks of the columns; finished cells are kept in OUT/cache.

    Raises:
        ComdefendError: as `Evaluation.run`, or the folder cannot be written.
    """
    make_folder(arguments.out)
    began = time.perf_counter()
    attacks = chosen_attacks(columns, arguments.attacks)
    measured = Measured(attacks)
    systems = _distinct([line.system for line in lines if line.system])
    bounds: dict[tuple[float, ...], list[str]] = {}
    for column in columns:
        if column.attack in attacks:
            # As floats, which the cache's keys tell from whole numbers.
            bounds.setdefault(tuple(map(float, column.epsilons)), []).append(column.attack)
    for epsilons, names in bounds.items() if systems else ():
        settings: dict[str, Any] = {"attacks": tuple(dict.fromkeys(names)), "epsilons": epsilons, "threats": (GRAY_BOX,)}
        protocol = Protocol(**settings, seed=arguments.seed, batch=arguments.batch_size, float_pixels=arguments.float)
        evaluation = Evaluation(protocol, data, systems, Cache(arguments.out / "cache"), resolve_device(arguments.device), _Reports())
        for cell in evaluation.run():
            _say(cell, measured)
            measured.cells[cell.classifier, cell.defence, cell.attack, cell.epsilon] = cell
        measured.results.append(evaluation.to_json())
    measured.seconds = round(time.perf_counter() - began, 1)
    return measured


def make_folder(folder: Path) -> None:
    """Make it if need be.

    Raises:
        ComdefendError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{folder}: cannot make this folder: {explain(error)}") from error


def _distinct(systems: list[System]) -> list[System]:
    return list({(system.classifier.name, system.defence.name): system for system in systems}.values())


def _say(cell: Cell, measured: Measured) -> None:
    if (cell.classifier, cell.defence, cell.attack, cell.epsilon) in measured.cells:
        return
    at = f" at {cell.epsilon:g}" if cell.epsilon is not None else ""
    what = f"{cell.classifier} behind {cell.defence}, {cell.title}{at}"
    print(f"{what}: {100 * cell.correct / cell.n:.1f} % of {cell.n}, {cell.seconds:.0f} s", file=sys.stderr, flush=True)


class _Reports:
    """Says how far a long attack is, now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, label: str, done: int, total: int) -> None:
        if time.monotonic() - self.last > SECONDS_BETWEEN_REPORTS:
            self.last = time.monotonic()
            print(f"  {label}: {done} of {total}", file=sys.stderr, flush=True)


def publish(table: Table, lines: list[Line], data: Labelled, arguments: argparse.Namespace, remarks: Sequence[str] = ()) -> None:
    """Measure, print what was asked for of the table, and write OUT/tableN.md and .json; remarks go below it, with --note last."""
    measured = measure(table.columns, lines, data, arguments)
    shown = tuple(column for column in table.columns if column.attack in (CLEAN, *measured.attacks))
    left = ", ".join(column.title for column in table.columns if column not in shown)
    remarks = [f"Columns {LEFT_OUT}: {left}" if left else "", *remarks, arguments.note]
    text = markdown(table, shown, lines, measured, [about(lines, data, measured, arguments), *remarks])
    print(text)
    record = {"table": table.number, "caption": table.caption, **as_json(table, table.columns, lines, measured, arguments)}
    write(arguments.out / f"table{table.number}", text, record)


def publish_imagenet(table: Table, doc: str | None, argv: Sequence[str] | None) -> None:
    """The whole command of a table of ImageNet."""
    made = parser(doc)
    add_folder(made)
    add_weights(made, "comdefend-12bit-denoise")
    add_evaluation(made, limit=100, batch_size=25)
    arguments = made.parse_args(argv)
    lines = lines_of_imagenet(table, arguments)
    data = load_labelled(arguments.data, Path(arguments.data), limit=arguments.limit, seed=arguments.seed, size=arguments.size)
    publish(table, lines, data, arguments)


def write(stem: Path, text: str, record: dict[str, Any]) -> None:
    """Write STEM.md and STEM.json, in place of those before."""
    write_atomically(stem.with_suffix(".md"), text.encode(), overwrite=True)
    write_atomically(stem.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode(), overwrite=True)


def about(lines: list[Line], data: Labelled, measured: Measured, arguments: argparse.Namespace) -> str:
    """On what the numbers were measured."""
    names = list(dict.fromkeys(line.system.classifier.name for line in lines if line.system))
    if not names:
        return "Nothing was measured."
    networks = dict.fromkeys(row.network for line in lines for row in line.published)
    precisions = dict.fromkeys(line.system.defence.settings.get("precision") for line in lines if line.system)
    precision = " and ".join(str(each) for each in precisions if each)
    versions = {name: version for results in measured.results for name, version in results["versions"].items()}
    return (
        f"Measured on n = {len(data)} images of {data.name}, drawn at random (seed {arguments.seed}). "
        f"The classifiers, in place of {', '.join(networks)}: {', '.join(names)}. "
        "Grey-box attacks, as the paper's: the attacker has the classifier, not the defence in front of it; what DeepFool and C&W find is "
        f"brought within the bound{'' if arguments.float else ', once lengthened to outlast the rounding of all images to 8 bits'}. "
        f"{hardware(arguments.device)}{f', ComDefend in {precision}' if precision else ''}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def hardware(device: str) -> str:
    """The device, with the machine's cores."""
    return f"{describe_device(resolve_device(device))} ({os.cpu_count()} cores, {platform.machine()})"


def markdown(
    table: Table, columns: tuple[Column, ...], lines: list[Line], measured: Measured, remarks: Sequence[str], title: str = ""
) -> str:
    """The table, its cells the paper's accuracy above the measured one, as GitHub Markdown.

    Args:
        table: where the paper's numbers are.
        columns: what to show; their bounds need not be the table's.
        lines: what to show, in order.
        measured: what there is.
        remarks: paragraphs on how it was measured; empty ones are left out.
        title: of the section; by default the table's number.
    """
    reasons = Reasons()
    several = [column for column in columns if len(column.epsilons) > 1]
    bounds = several[0].epsilons if several else table.epsilons
    head = ["in the paper", "here", *(["ε"] if several else []), *(column.title for column in columns)]
    rows = []
    for line in lines:
        for i, bound in enumerate(bounds):
            cells = [_cell(table, column, line, i, measured, reasons) for column in columns]
            names = ["", ""] if i else [line.name, line.label]
            rows.append([*names, *([f"{bound:g}"] if several else []), *cells])
    notes = list(dict.fromkeys(line.note for line in lines if line.note))
    parts = [
        f"### {title or f'Table {table.number}'}",
        f"The paper's: “{table.caption}”, {table.images}.",
        "Accuracy in %, with the 95 % interval of what was measured. ε in steps of 1/255.",
        grid(head, rows),
        *([reasons.text()] if reasons.found else []),
        *(f"{remark.rstrip('.')}." for remark in (*remarks, *notes) if remark),
        "Doubtful in the paper:\n\n" + "\n".join(f"- {doubt}" for doubt in table.doubts),
    ]
    return "\n\n".join(parts) + "\n"


def _at(column: Column, i: int) -> float | None:
    return column.epsilons[min(i, len(column.epsilons) - 1)] if column.epsilons else None


def _cell(table: Table, column: Column, line: Line, i: int, measured: Measured, reasons: Reasons) -> str:
    epsilon = _at(column, i)
    published = [table.value(row, column.attack, epsilon) for row in line.published]
    found = measured.cell(line, column.attack, epsilon)
    paper = " / ".join("-" if value is None else str(value) for value in published) if any(v is not None for v in published) else ""
    return beside(paper, interval(found.correct, found.n) if found else reasons.say(measured.why(line)), measured=found is not None)


def as_json(
    table: Table, columns: tuple[Column, ...], lines: list[Line], measured: Measured, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The same, cell by cell, with all settings."""
    rows = []
    for line in lines:
        for column in columns:
            for epsilon in column.epsilons or (None,):
                found = measured.cell(line, column.attack, epsilon)
                rows.append(
                    {
                        "paper_row": line.name,
                        "system": line.label,
                        "attack": column.attack or None,
                        "epsilon": epsilon,
                        "paper": {row.network: table.value(row, column.attack, epsilon) for row in line.published},
                        "measured": found.to_json() if found else None,
                        "why_not": None if found else measured.why(line),
                    }
                )
    return {
        "cells": rows,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "hardware": hardware(arguments.device),
        "torch": torch.__version__,
        "seconds": measured.seconds,
        "evaluations": [{name: value for name, value in results.items() if name != "cells"} for results in measured.results],
    }
