"""The tables of the page: headlines, one a threat model, and every single measurement."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from comdefend_cli.evaluate.reporting.markup import Html, join, tag
from comdefend_cli.evaluate.reporting.tables import THREATS, Measured, System, Tables, number, plain, sizes, sizes_said
from comdefend_cli.evaluate.reporting.text import EXPLAINED

#: Of the headings of the threat models' columns, in one table and in sentences.
NAMED = {threat: threat[0].upper() + threat[1:] for threat in THREATS}


def named(text: str) -> Html:
    """A name that may break where it has punctuation."""
    return join([[part, tag("wbr")] if part and not part[-1].isalnum() else part for part in re.split(r"(?<=[:,=\-/_+])", text)])


def scrolling(name: str, caption: Html, *parts: Html, class_: str = "") -> Html:
    """A table that scrolls by itself where the window is narrow, by keyboard too."""
    table = tag("table", tag("caption", tag("span", caption), id=f"caption-{name}"), parts, id=f"table-{name}", class_=class_ or None)
    return tag("div", table, class_="scroll", role="region", tabindex="0", aria_labelledby=f"caption-{name}")


def headline_table(tables: Tables) -> Html:
    """Clean accuracy, and for each epsilon what holds against all attacks of each threat model, side by side."""
    epsilons = tables.epsilons or [0.0]  # Without any attack there are still columns to say so.
    clean = sizes(map(tables.clean, tables.systems))
    counts = {
        (threat, epsilon): sizes(tables.headline(system, threat, epsilon) for system in tables.systems)
        for epsilon in epsilons
        for threat in THREATS
    }
    titles = [f"ε = {number(epsilon)}" if epsilon else "Under attack" for epsilon in epsilons]
    groups = [tag("th", title, colspan=len(THREATS), scope="colgroup", class_="first") for title in titles]
    heads = [
        tag("th", NAMED[threat], _count(counts[threat, epsilon]), scope="col", class_=_first(threat))
        for epsilon in epsilons
        for threat in THREATS
    ]
    head = _head(["Defence", join("Clean", _count(clean))], groups, heads, spans=[len(THREATS)] * len(epsilons))

    def row(system: System) -> list[Html]:
        cells = [_cell(tables.clean(system), "not measured", clean)]
        for epsilon in epsilons:
            for threat in THREATS:
                found = tables.headline(system, threat, epsilon)
                cells.append(_cell(found, tables.missing(system, threat, epsilon), counts[threat, epsilon], class_=_first(threat)))
        return cells

    caption = join(
        tag("b", "Headline."),
        f" {EXPLAINED} ε is the largest change of a pixel, of 255 levels. {_sizes_note([clean, *counts.values()])} {tables.uneven()}",
    )
    return scrolling("headline", caption, head, *_bodies(tables, row, 2 + len(heads)), class_="numbers headline")


def threat_table(tables: Tables, threat: str) -> Html:
    """Every attack at every epsilon under one threat model; where an attack ran with several gradients, all, worst first."""
    attacks, epsilons = tables.attacks(threat), sorted({cell.epsilon for cell in tables.cells if cell.threat == threat and cell.epsilon})
    counts = sizes(cell for cell in tables.cells if cell.threat == threat)
    groups = [tag("th", attack, colspan=len(epsilons), scope="colgroup", class_="first") for attack in attacks]
    heads = [
        tag("th", f"ε = {number(epsilon)}", scope="col", class_="first" if i == 0 else None)
        for _ in attacks
        for i, epsilon in enumerate(epsilons)
    ]
    head = _head(["Defence"], groups, heads, spans=[len(epsilons)] * len(attacks))

    def row(system: System) -> list[Html]:
        return [
            _several(
                tables.at(system, threat, attack, epsilon), tables.lowest(system, threat, epsilon), counts, "first" if i == 0 else None
            )
            for attack in attacks
            for i, epsilon in enumerate(epsilons)
        ]

    caption = join(
        tag("b", f"{NAMED[threat]}."),
        f" Accuracy in % with its 95 % interval. Underlined: the lowest of a defence at that ε. {sizes_said(counts)}",
    )
    return scrolling(threat, caption, head, *_bodies(tables, row, 1 + len(heads)), class_="numbers wide" if len(heads) > 12 else "numbers")


def all_cells(tables: Tables) -> Html:
    """Every measurement with everything that is known of it."""
    titles = "Classifier", "Defence", "Threat model", "Attack", "ε", "n", "Right", "Accuracy", "Mean L∞", "Mean L2", "Seconds", "Settings"
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in titles]))
    rows = []
    for cell in tables.cells:
        record = cell.record
        known = [record.get("correct"), str(cell), record.get("mean_linf"), record.get("mean_l2"), record.get("seconds")]
        named = [
            cell.system.classifier,
            cell.system.defence,
            cell.threat,
            cell.attack,
            "" if cell.epsilon is None else number(cell.epsilon),
        ]
        texts = [
            *named,
            str(cell.n),
            *("" if value is None else str(value) for value in known),
            settings_said(record.get("settings") or {}),
        ]
        rows.append(tag("tr", [tag("td", text) for text in texts]))
    return scrolling("cells", tag("b", "Every measurement."), head, tag("tbody", rows))


def settings_said(settings: Mapping[str, Any]) -> str:
    """Settings on one line: "restarts = 1, steps = 20"."""
    return ", ".join(f"{plain(key)} = {plain(_value(value))}" for key, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_value, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _first(threat: str) -> str | None:
    return "first" if threat == THREATS[0] else None


def _count(counts: Sequence[int]) -> Html | None:
    return tag("small", f" n = {counts[0]}") if len(counts) == 1 else None


def _sizes_note(counts: Iterable[Sequence[int]]) -> str:
    everything = [one for column in counts for one in column]
    if len(set(everything)) <= 1:
        return sizes_said(sorted(set(everything)))
    return "The number of images n is not the same everywhere: it stands with the column, or with the number."


def _head(firsts: Sequence[Html | str], groups: Sequence[Html], heads: Sequence[Html], spans: Sequence[int]) -> Html:
    columns = join(tag("colgroup", span=len(firsts)), [tag("colgroup", span=span) for span in spans])
    leading = [tag("th", first, rowspan=2, scope="col") for first in firsts]
    return join(columns, tag("thead", tag("tr", leading, groups), tag("tr", heads)))


def _bodies(tables: Tables, row: Callable[[System], list[Html]], width: int) -> list[Html]:
    """One body a classifier, named where there are several."""
    alarmed = {(plain(alarm["classifier"]), plain(alarm["defence"])) for alarm in tables.results.get("alarms", [])}
    bodies = []
    for classifier in tables.classifiers:
        rows = []
        if len(tables.classifiers) > 1:
            name = tag("span", "Classifier ", tag("b", classifier))
            rows.append(tag("tr", tag("th", name, colspan=width, scope="rowgroup"), class_="group"))
        for system in tables.of_classifier(classifier):
            mark = tag("a", "alarm", href="#alarms", class_="mark") if (system.classifier, system.defence) in alarmed else None
            rows.append(tag("tr", tag("th", named(system.defence), " " if mark else None, mark, scope="row"), row(system)))
        bodies.append(tag("tbody", rows))
    return bodies


def _cell(measured: Measured | None, missing: str, counts: Sequence[int], class_: str | None = None) -> Html:
    classes = " ".join(filter(None, (class_, "value" if measured else "missing")))
    if measured is None:
        return tag("td", missing, class_=classes)
    return tag("td", _number(measured, counts, measured.attack), class_=classes, style=f"--v:{measured.accuracy:.1f}")


def _several(found: Sequence[Measured], least: float, counts: Sequence[int], class_: str | None) -> Html:
    if not found:
        return _cell(None, "not measured", counts, class_)
    numbers = [tag("div", _number(each, counts, each.gradient), class_="least" if each.accuracy == least else None) for each in found]
    classes = " ".join(filter(None, (class_, "value", "several" if len(found) > 1 else None)))
    return tag("td", numbers, class_=classes, style=f"--v:{found[0].accuracy:.1f}")


def _number(measured: Measured, counts: Sequence[int], how: str) -> Html:
    accuracy, _, interval = str(measured).partition(" ")
    n = [" ", tag("span", f"n = {measured.n}", class_="via")] if len(counts) > 1 else None
    return join(
        tag("b", accuracy), " ", tag("span", interval, class_="interval"), [" ", tag("span", how, class_="via")] if how else None, n
    )
