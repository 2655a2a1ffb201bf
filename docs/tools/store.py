#!/usr/bin/env python3
"""Put what was measured under docs/data, from where every table and number of the documents comes.

    python docs/tools/store.py NAME=FILE [NAME=FILE ...]
    python docs/tools/make.py                               # then: the numbers in place, and the charts

FILE is `results.json` of `comdefend evaluate`, which becomes docs/data/NAME.csv, a line a measurement; `summary.json` of
`comdefend certify`, which is taken as it is; or the JSON of a benchmark or the
Markdown of a table of benchmarks/paper, which become docs/data/NAME.json. Of benchmarks/fidelity.py and benchmarks/colors.py, whose output
may be given as it was printed, the weights that were measured replace those of docs/data, and others stay: call them fidelity and colors.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent / "benchmarks")]

import speed_report  # noqa: E402  # It lies beside the benchmarks whose results it words.
from measured import COLUMNS, DATA, TOGETHER  # noqa: E402

from comdefend_cli.errors import ComdefendError, UsageError, explain  # noqa: E402
from comdefend_cli.evaluate.reporting.tables import Measured, Tables  # noqa: E402
from comdefend_cli.runtime.files import write_atomically  # noqa: E402

#: Where weight files lie, which is of no interest to a reader.
FOLDERS = re.compile(r"[^\s|=:,(`]*/(?=[^/\s|]+\.safetensors)")


def main(argv: Sequence[str] | None = None, data: Path = DATA) -> None:
    """Store what is named."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("parts", nargs="+", metavar="NAME=FILE")
    for part in made.parse_args(argv).parts:
        name, _, file = part.partition("=")
        suffix, text = convert(Path(file), data / f"{name}.json")
        for other in {".csv", ".json"} - {suffix}:
            (data / f"{name}{other}").unlink(missing_ok=True)
        write_atomically(data / f"{name}{suffix}", text.encode(), overwrite=True)
        print(data / f"{name}{suffix}")


def convert(file: Path, old: Path) -> tuple[str, str]:
    """The ending and the content of the file of docs/data that a result becomes; what is measured of some weights goes into the old one.

    Raises:
        UsageError: the file cannot be read, or is no result.
    """
    try:
        text = FOLDERS.sub("", file.read_text())
        result = read_result(text) if file.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {explain(error)}") from error
    if result is None:
        return ".json", write_parts(split_markdown(text))
    if not isinstance(result, dict):
        raise UsageError(f"{file}: is neither the results.json of comdefend evaluate nor the JSON of a benchmark")
    if "results" in result:
        return ".json", write_by_weights({**(json.loads(old.read_text()) if old.is_file() else {}), **result["results"]})
    if "certified" in result:
        return ".json", json.dumps(result, indent=1) + "\n"
    if "cells" in result:
        return ".csv", list_measurements(result)
    if speed_report.KINDS & result.keys():
        return ".json", write_parts(split_markdown(speed_report.table(result)))
    return ".json", write_parts(list_tables(result))


def read_result(text: str) -> Any:
    """JSON, or the last line of what a benchmark prints."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text.strip().splitlines()[-1])


def write_by_weights(found: dict[str, Any]) -> str:
    """What was measured of each weight file, a line each."""
    return "{" + ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()) + "}\n"


def list_measurements(results: dict[str, Any]) -> str:
    """The lines of an evaluation: clean, single attacks, and all attacks of a threat model together, counted image by image."""
    tables = Tables(results)
    rows = [_line(cell, cell.title if cell.threat != "clean" else "", cell.gradient) for cell in tables.cells]
    rows += [_line(each, TOGETHER, each.attack) for each in tables.headlines]
    order = {system: number for number, system in enumerate(tables.systems)}
    rows.sort(key=lambda row: order[row[0]])
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row[1] for row in rows)
    return written.getvalue()


def _line(cell: Measured, attack: str, gradient: str) -> tuple[Any, list[str]]:
    epsilon = "" if cell.epsilon is None else f"{cell.epsilon:g}"
    numbers = [f"{value:.1f}" for value in (cell.accuracy, cell.low, cell.high)]
    return cell.system, [cell.system.classifier, cell.system.defence, cell.threat, epsilon, attack, gradient, *numbers, str(cell.n)]


def list_tables(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of a benchmark: each list of records as a table, then all else as a table of names and values."""
    parts = []
    for rows in (value for value in result.values() if _is_table(value)):
        heads = list(rows[0])
        parts.append({"columns": list(map(_words, heads)), "rows": [[_shown(row[head]) for head in heads] for row in rows]})
    rest = [list(pair) for pair in _flat({key: value for key, value in result.items() if not _is_table(value)})]
    return [*parts, {"columns": ["what", "value"], "rows": rest}] if rest else parts


def split_markdown(text: str) -> list[dict[str, Any]]:
    """Markdown as text and tables, in order."""
    parts: list[dict[str, Any]] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.strip().splitlines()
        if len(lines) > 1 and lines[0].startswith("|"):
            head, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
            parts.append({"columns": head, "rows": rows})
        else:
            parts.append({"text": block.strip()})
    return parts


def write_parts(parts: Sequence[dict[str, Any]]) -> str:
    """Text and tables as JSON, a row of a table a line."""
    written = []
    for part in parts:
        if "text" in part:
            written.append(json.dumps(part, ensure_ascii=False))
        else:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in part["rows"])
            written.append(f'{{"columns": {json.dumps(part["columns"], ensure_ascii=False)}, "rows": [\n  {rows}]}}')
    return "[" + ",\n ".join(written) + "]\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield _words(name), _shown(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}, {key}" if name else key)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else "" if value is None else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    try:
        main()
    except ComdefendError as error:
        sys.exit(f"error: {error}")
