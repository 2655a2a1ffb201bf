#!/usr/bin/env python3
"""Put measured tables into a document, so that none of their numbers is typed.

    python benchmarks/paper/paste.py DOCUMENT NAME=FILE [NAME=FILE ...]

What stands between the lines `<!-- NAME -->` and `<!-- /NAME -->` of the Markdown document is replaced: by the file as it is where it is
Markdown (a table of this folder, or `tables.md` of `comdefend evaluate`), or where it is `results.json` of `comdefend evaluate`, by
a short table of the accuracy on clean pictures and the lowest one of each threat model.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from options import run
from systems import short

from comdefend_cli.errors import UsageError
from comdefend_cli.files import write_atomically

#: Levels of the short table.
SHOWN = (2.0, 8.0)
THREATS = ("grey-box", "adaptive")


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
    # Where weight files lie is of no interest to a reader.
    return headline(json.loads(text)) if file.suffix == ".json" else re.sub(r"[^\s|=:,(]*/(?=[^/\s|]+\.safetensors)", "", text).strip()


def pasted(document: str, name: str, text: str) -> str:
    """The document with the part of that name replaced.

    Raises:
        UsageError: it has no such part.
    """
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not marked.search(document):
        raise UsageError(f"the document has no part between <!-- {name} --> and <!-- /{name} -->")
    return marked.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document)


def headline(results: dict[str, Any]) -> str:
    """A line a system: clean, then the lowest accuracy of each threat model at `SHOWN`, in percent."""
    several = len({system["classifier"] for system in results["systems"]}) > 1
    head = ["defence", "clean", *(f"{threat}, {epsilon:g}" for threat in THREATS for epsilon in SHOWN)]
    lines = [head, ["---"] * len(head)]
    for system in results["systems"]:
        names = system["classifier"], system["defence"]
        values = [lowest(results["cells"], names, "clean", None)]
        values += [lowest(results["cells"], names, threat, epsilon) for threat in THREATS for epsilon in SHOWN]
        label = f"`{short(names[1])}`" if names[1] != "none" else "none"
        lines.append([f"{names[0]}, {label}" if several else label, *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def lowest(cells: list[dict[str, Any]], names: tuple[str, str], threat: str, epsilon: float | None) -> str:
    """The lowest accuracy of a system, in percent, or a dash."""
    found = [
        cell["accuracy"]
        for cell in cells
        if (cell["classifier"], cell["defence"]) == names and cell["threat"] == threat and cell["epsilon"] == epsilon
    ]
    return f"{min(found):.1f}" if found else "-"


if __name__ == "__main__":
    run(main)
