"""The tables as GitHub Markdown, for documents, and as Rich tables, for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.evaluate.certified import list_radii
from comdefend_cli.evaluate.reporting.tables import (
    FEW,
    NOT_MEASURED,
    THREATS,
    Measured,
    System,
    Tables,
    count_sizes,
    make_printable,
    say_sizes,
)

if TYPE_CHECKING:
    from rich.table import Table

#: What a headline is.
EXPLAINED = (
    "Accuracy in % (95 % interval): images classified right that every attack of the threat model failed on; beside it the attack that "
    "alone did the most harm."
)
CERTIFIED = (
    "Accuracy in % (95 % interval) of the classifier smoothed by noise: images classified right for which no image within the L2 radius "
    "(pixels in [0, 1]) has another class, whatever the attacker does."
)
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$])")


def make_markdown(results: Mapping[str, Any]) -> str:
    """The headline table and one table a threat model, as GitHub Markdown.

    A row a system and epsilon, grey-box, adaptive and black-box side by side; cells are accuracy in percent with its 95 %
    interval, "24.6 (21.0-28.6)", and what was not measured says so.

    Args:
        results: the contents of `results.json`.

    Raises:
        UsageError: a format that this release does not read.
    """
    tables = Tables(results)
    parts = [_headline(tables)]
    parts += [_threat(tables, threat) for threat in tables.list_threats()]
    if certificates := results.get("certificates"):
        parts.append(_certified(certificates))
    return "\n".join(parts)


def _capitalize(threat: str) -> str:
    return threat[0].upper() + threat[1:]


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _names(tables: Tables, system: System) -> list[str]:
    names = [system.classifier, system.defence] if len(tables.classifiers) > 1 else [system.defence]
    return [_escape(name) for name in names]


def _headline(tables: Tables) -> str:
    counts = {"clean": tables.count_clean()}
    counts |= {threat: count_sizes(each for each in tables.headlines if each.threat == threat) for threat in tables.list_threats()}
    heads = {name: f"{_capitalize(name)}, n = {numbers[0]}" if len(numbers) == 1 else _capitalize(name) for name, numbers in counts.items()}
    clean_head = heads.pop("clean")
    head = [*(["Classifier"] if len(tables.classifiers) > 1 else []), "Defence", clean_head, *(["ε"] if heads else []), *heads.values()]
    rows = []
    for system in tables.systems:
        clean = tables.find_clean(system)
        first = [*_names(tables, system), _value(clean, counts["clean"]) if clean else NOT_MEASURED]
        for epsilon in tables.epsilons or [0.0]:
            found = {threat: tables.find_headline(system, threat, epsilon) for threat in tables.list_threats()}
            cells = [
                f"{_value(each, counts[threat])} {_escape(each.attack)}" if each else tables.say_missing(system, threat, epsilon)
                for threat, each in found.items()
            ]
            rows.append([*first, *([say_epsilon(epsilon)] if heads else []), *cells])
    few = f"Fewer than {FEW} images ({', '.join(tables.list_few())}): small differences may be chance. " if tables.list_few() else ""
    explained = f"{few}{EXPLAINED} ε for pixels in [0, 1]. {tables.say_uneven()}".rstrip()
    return f"### Headline\n\n{explained}\n\n{_markdown(head, rows)}"


def _threat(tables: Tables, threat: str) -> str:
    attacks = tables.list_attacks(threat)
    head = [*(["Classifier"] if len(tables.classifiers) > 1 else []), "Defence", "ε", *map(_escape, attacks)]
    counts = tables.count_under(threat)
    rows = []
    for system in tables.systems:
        for epsilon in tables.epsilons or [0.0]:
            found = [tables.find(system, threat, attack, epsilon) for attack in attacks]
            if any(found):
                rows.append([*_names(tables, system), say_epsilon(epsilon), *(_several(cells, counts) for cells in found)])
    return f"### {_capitalize(threat)}\n\nAccuracy in % (95 % interval). {say_sizes(counts)}\n\n{_markdown(head, rows)}"


def _certified(certificates: Sequence[Mapping[str, Any]]) -> str:
    radii = list_radii(certificates)
    rows = []
    for entry in certificates:
        found = {row["name"]: f"{row['accuracy']:.1f} ({row['low']:.1f}-{row['high']:.1f})" for row in entry["certified"]}
        names = [_escape(make_printable(entry[name])) for name in ("classifier", "defence")]
        about = [f"{entry['sigma']:g}", f"{entry['n']:,g}", f"{entry['images']:g}"]
        rows.append([*names, *about, *(found.get(name, "") for name in radii)])
    head = ["Classifier", "Smoothed behind", "Sigma", "Draws", "Images", *(_escape(make_printable(name)) for name in radii)]
    return f"### Certified\n\n{CERTIFIED}\n\n{_markdown(head, rows)}"


def _several(cells: Sequence[Measured], counts: Sequence[int]) -> str:
    """All measurements of a place, worst first, with their gradients."""
    return "<br>".join(f"{_value(cell, counts)} {_escape(cell.gradient)}".rstrip() for cell in cells) or NOT_MEASURED


def _value(measured: Measured, counts: Sequence[int]) -> str:
    return f"{measured}, n = {measured.n}" if len(counts) > 1 else str(measured)


def make_rich_tables(results: Mapping[str, Any]) -> list[Table]:
    """The headline numbers for the terminal, a table an epsilon: clean, grey-box, adaptive and black-box side by side.

    Args:
        results: the contents of `results.json`.

    Raises:
        UsageError: a format that this release does not read.
    """
    tables = Tables(results)
    return [_rich_headline(tables, epsilon) for epsilon in tables.epsilons or [0.0]]


def _rich_headline(tables: Tables, epsilon: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    clean = [tables.find_clean(system) for system in tables.systems]
    counts = {threat: tables.count_headline(threat, epsilon) for threat in THREATS if tables.is_measured(threat, epsilon)}
    under = f", under all attacks at ε = {say_epsilon(epsilon)}" if counts else ""
    table = Table(title=f"Accuracy in % (95 % interval){under}", title_justify="left")
    if len(tables.classifiers) > 1:
        table.add_column("classifier", overflow="fold")
    table.add_column("defence", overflow="fold")
    for name, numbers in {"clean": tables.count_clean(), **counts}.items():
        table.add_column(f"{name}\nn = {numbers[0]}" if len(numbers) == 1 else name, justify="right", overflow="fold")
    for system, measured in zip(tables.systems, clean, strict=True):
        names = [system.classifier, system.defence] if len(tables.classifiers) > 1 else [system.defence]
        cells = [_value(measured, tables.count_clean()) if measured else NOT_MEASURED]
        for threat in counts:
            found = tables.find_headline(system, threat, epsilon)
            cells.append(_value(found, counts[threat]) if found else tables.say_missing(system, threat, epsilon))
        table.add_row(*map(Text, [*names, *cells]))
    return table
