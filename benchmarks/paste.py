#!/usr/bin/env python3
"""Put what was measured into a document, so that none of its numbers is typed.

    python benchmarks/paste.py DOCUMENT NAME=FILE [NAME=FILE ...]

What stands between the lines `<!-- NAME -->` and `<!-- /NAME -->` of the Markdown document is replaced: by the file as it is where it is
Markdown (a table of paper/, or `tables.md` of `comdefend evaluate`); where it is `results.json` of `comdefend evaluate`, by a short
table of the accuracy on clean images and under all attacks of each threat model together; where it is JSON of a benchmark, by its tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import speed_report

from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.evaluate.reporting.tables import UNDEFENDED, Tables
from comdefend_cli.runtime.files import write_atomically

#: Levels of the short table.
SHOWN = (2.0, 8.0)
THREATS = ("grey-box", "adaptive")
#: Where weight files lie, which is of no interest to a reader.
FOLDERS = re.compile(r"[^\s|=:,(`]*/(?=[^/\s|]+\.safetensors)")


def main(argv: Sequence[str] | None = None) -> None:
    """Replace the parts that are named."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("document", type=Path)
    made.add_argument("parts", nargs="+", metavar="NAME=FILE")
    arguments = made.parse_args(argv)
    text = arguments.document.read_text()
    for part in arguments.parts:
        name, _, file = part.partition("=")
        text = pasted(text, name, content(Path(file)))
    write_atomically(arguments.document, text.encode(), overwrite=True)


def content(file: Path) -> str:
    """What a file puts into a document.

    Raises:
        UsageError: there is no such file.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    text = file.read_text()
    return FOLDERS.sub("", tables(json.loads(text)) if file.suffix == ".json" else text).strip()


def pasted(document: str, name: str, text: str) -> str:
    """The document with the part of that name replaced.

    Raises:
        UsageError: it has no such part.
    """
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not marked.search(document):
        raise UsageError(f"the document has no part between <!-- {name} --> and <!-- /{name} -->")
    return marked.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document)


def tables(result: dict[str, Any]) -> str:
    """A result as Markdown."""
    if "cells" in result:
        return headline(result)
    return speed_report.table(result) if speed_report.KINDS & result.keys() else make_printable(result)


def make_printable(result: dict[str, Any]) -> str:
    """Each list of rows as a table, then all else as a table of names and values."""
    parts = []
    for rows in (value for value in result.values() if _is_table(value)):
        heads = list(rows[0])
        parts.append(
            "\n".join(map(_line, [map(_words, heads), ["---"] * len(heads), *([_shown(row[head]) for head in heads] for row in rows)]))
        )
    rest = list(_flat({key: value for key, value in result.items() if not _is_table(value)}))
    return "\n\n".join([*parts, "\n".join(map(_line, [("", ""), ("---", "---"), *rest]))] if rest else parts)


def headline(results: dict[str, Any]) -> str:
    """A line a system: clean, then what holds against all attacks of each threat model, at those of `SHOWN` measured, in percent."""
    found = Tables(results)
    measured = {(each.threat, each.epsilon) for each in found.headlines}
    columns = [(threat, epsilon) for threat in THREATS for epsilon in SHOWN if (threat, epsilon) in measured]
    head = ["defence", "clean", *(f"{threat}, {epsilon:g}" for threat, epsilon in columns)]
    lines = [head, ["---"] * len(head)]
    for system in found.systems:
        values = [found.find_clean(system), *(found.find_headline(system, *column) for column in columns)]
        label = f"`{system.defence}`" if system.defence != UNDEFENDED else UNDEFENDED
        label = f"{system.classifier}, {label}" if len(found.classifiers) > 1 else label
        lines.append([label, *(f"{value.accuracy:.1f}" if value else "-" for value in values)])
    return "\n".join(map(_line, lines))


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


def _line(cells: Sequence[str] | map[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except ComdefendError as error:
        sys.exit(f"error: {error}")
