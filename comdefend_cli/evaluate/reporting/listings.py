"""What the tables of the page list, as rows of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.evaluate.reporting.tables import THREATS, Measured, Tables, count_sizes, say_sizes


@dataclass(frozen=True)
class Column:
    """A column of the headline table, with the numbers of images in it, and whether it is the first of its epsilon."""

    threat: str
    epsilon: float
    sizes: list[int]
    first: bool


def list_columns(tables: Tables) -> list[Column]:
    """For each epsilon the threat models that were measured at it, side by side."""
    found: list[Column] = []
    for epsilon in tables.epsilons:
        for threat in THREATS:
            if tables.is_measured(threat, epsilon):
                first = not found or found[-1].epsilon != epsilon
                found.append(Column(threat, epsilon, tables.count_headline(threat, epsilon), first))
    return found


def say_column_sizes(columns: Iterable[Sequence[int]]) -> str:
    """One sentence on the numbers of images of a table's columns."""
    everything = {n for sizes in columns for n in sizes}
    if len(everything) <= 1:
        return say_sizes(sorted(everything))
    return "The number of images n is not the same everywhere: it stands with the column, or with the number."


def list_cells(tables: Tables) -> list[list[str]]:
    """Every measurement with everything that is known of it."""
    return [_list_cell(cell) for cell in tables.cells]


def _list_cell(cell: Measured) -> list[str]:
    epsilon = "" if cell.epsilon is None else say_epsilon(cell.epsilon)
    known = [cell.record.get("correct"), str(cell), *(cell.record.get(name) for name in ("mean_linf", "mean_l2", "seconds"))]
    return [
        *(cell.system.classifier, cell.system.defence, cell.threat, cell.attack, epsilon, str(cell.n)),
        *("" if value is None else str(value) for value in known),
        say_settings(cell.record.get("settings") or {}),
    ]


def list_attacks(tables: Tables) -> list[list[str]]:
    """Attacks with their settings, once each, with the images and the time they took altogether."""
    runs: dict[tuple[str, str, str], list[Measured]] = {}
    for cell in tables.cells:
        if cell.title:
            runs.setdefault((cell.threat, cell.attack, say_settings(cell.record.get("settings") or {})), []).append(cell)
    return [
        [*run, ", ".join(map(str, count_sizes(cells))), _say_time(sum(float(cell.record.get("seconds") or 0) for cell in cells))]
        for run, cells in runs.items()
    ]


def list_systems(entries: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Systems with the settings that decide their answers."""
    return [
        [entry["classifier"], entry["defence"], "yes" if entry.get("stochastic") else "no", say_settings(entry.get("settings") or {})]
        for entry in entries
    ]


def list_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """How the results came to be, by the name of each fact, those that are known."""
    data = results["data"]
    versions = {"comdefend": results["package_version"], **results.get("versions", {})}
    facts = {
        "Command": results.get("command"),
        "Data": f"{data['name']}, {count_noun(data['n'], 'image')}, classes: {len(data['classes'])}",
        "SHA-256 of the data": data.get("sha256"),
        "Adversarial pixels": "as the attack made them (float)" if results.get("float_pixels") else "rounded to 8 bits, as saved files are",
        "Seed": results.get("seed"),
        "Computed on": ", ".join(str(results[key]) for key in ("hardware", "device", "precision") if results.get(key)),
        "Time": _say_time(float(results["seconds"])) if results.get("seconds") is not None else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Protocol": say_settings(results.get("protocol") or {}),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def count_noun(count: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say_settings(settings: Mapping[str, Any]) -> str:
    """Settings on one line: "restarts = 1, steps = 20"."""
    return ", ".join(f"{key} = {_say_value(value)}" for key, value in settings.items())


def _say_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_say_value, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _say_time(seconds: float) -> str:
    minutes = seconds / 60
    exactly = f"{seconds:.0f} s"
    return exactly if minutes < 2 else f"{minutes:.0f} min ({exactly})" if minutes < 120 else f"{minutes / 60:.1f} h ({exactly})"
