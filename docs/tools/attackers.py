"""Tables of what `benchmarks/adaptive.py` measured."""

from __future__ import annotations

from typing import Any

from measured import NO_BREAK, find_strong, make_table, read_json, say_share

NAMES = {
    "pgd-straight-through": "PGD, 50 steps, 5 starts, straight-through",
    "pgd-soft": "PGD, 50 steps, 5 starts, soft",
    "apgd-ce": "APGD, cross-entropy (AutoAttack)",
    "apgd-ce-wide": "APGD, cross-entropy, through a sigmoid eight times as wide",
    "apgd-t": "APGD, targeted (AutoAttack)",
    "fab-t": "FAB, targeted (AutoAttack)",
    "square": "Square, 5,000 queries (AutoAttack)",
    "transfer": "PGD on a copy with ReLU",
    "worst": "**all of them, image by image**",
}


def make_strong(*names: str) -> str:
    """A row an attack, a column an epsilon of each file: percent of the images that stood."""
    found = [read_json(name) for name in names]
    cells = {
        (row["attack"], number, row["epsilon"]): row
        for number, each in enumerate(found)
        for row in each["rows"]
        if row["attack"] != "clean"
    }
    columns = list(dict.fromkeys((number, epsilon) for _, number, epsilon in cells))
    columns.sort()
    rows = [["none", *(_say(_find_clean(found[number])) for number, _ in columns)]]
    for attack, title in NAMES.items():
        own = [cells.get((attack, *column)) for column in columns]
        if any(own):
            rows.append([title, *(_say(cell) if cell else "-" for cell in own)])
    heads = [f"`{found[number]['defence']}`, {epsilon:g}/255" for number, epsilon in columns]
    links = ", ".join(f"[{name}.json](data/{name}.json)" for name in names)
    note = f"Accuracy in % with its 95 % interval, n = {', '.join(dict.fromkeys(str(each['data']['n']) for each in found))}. {links}"
    return f"{make_table(['Attack', *heads], rows)}\n\n{note}"


def say_strong(name: str, attack: str, epsilon: str) -> str:
    """A number for a sentence: "35.2 %"; what is named and raised as of :func:`.measured.find_strong`."""
    return f"{find_strong(name, attack, epsilon):g}{NO_BREAK}%"


def _find_clean(found: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in found["rows"] if row["attack"] == "clean")


def _say(row: dict[str, Any]) -> str:
    return say_share(row) + ("<br><small>of those that stood the others</small>" if row.get("after") else "")
