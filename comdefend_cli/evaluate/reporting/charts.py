"""Charts of an evaluation: accuracy against epsilon (the paper's figure 4), and against accuracy on clean images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.evaluate.reporting.axes import draw_curves, draw_scatter
from comdefend_cli.evaluate.reporting.styles import Style, make_styles
from comdefend_cli.evaluate.reporting.tables import UNDEFENDED, Measured, System, Tables, say_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with what it shows in words."""

    name: str
    title: str
    alt: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Chart:
    """Panels that belong together: one file, or one row of a page.

    Attributes:
        name: of its files, without ending.
        kind: "curves" or "scatter".
        threat: the threat model.
        group: the classifier whose systems these are; "" where one chart has them all.
        title, note: what it shows, and how to read it.
        styles: of the systems in it, in order.
    """

    name: str
    kind: str
    threat: str
    group: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    styles: tuple[Style, ...]


def make_charts(tables: Tables) -> list[Chart]:
    """Every chart that the measurements allow: for each threat model curves, then a scatter of clean against attacked accuracy."""
    styles, made, groups = make_styles(tables), [], tables.group_systems()
    for group, systems in groups.items():
        suffix = f"-{_make_slug(group, list(groups))}" if group else ""
        shown = {system: styles[system] for system in systems}
        for kind, name, draw in (("curves", "curves", _plan_curves), ("scatter", "clean-against", _plan_scatters)):
            for threat in tables.list_threats():
                title, note = _describe(tables, kind, threat, group)
                made.append(
                    Chart(f"{name}-{threat}{suffix}", kind, threat, group, title, note, draw(tables, threat, shown), (*shown.values(),))
                )
    return [chart for chart in made if chart.panels]


def _describe(tables: Tables, kind: str, threat: str, group: str) -> tuple[str, str]:
    """A chart's title and how to read it."""
    counts = tables.count_under(threat)
    n = f"n = {counts[0]} under attack" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} under attack"
    of = f", classifier {group}" if group else ""
    if kind == "curves":
        every = ", through every gradient" if threat == "adaptive" else ""
        return f"Accuracy against epsilon, {threat}{every}{of}", f"Bands are 95 % intervals; {n}."
    title = f"Accuracy on clean images against accuracy under all {threat} attacks together{of}"
    return title, f"On the dashed line, an attack would cost nothing. Pale crosses are 95 % intervals; {n}."


def _make_slug(name: str, among: Sequence[str]) -> str:
    """A file name's part for one of several names."""
    slugs = [re.sub(r"[^A-Za-z0-9.]+", "-", each).strip("-.").lower()[:40] for each in among]
    i = list(among).index(name)
    return slugs[i] if slugs[i] and slugs.count(slugs[i]) == 1 else f"{slugs[i]}-{i + 1}".lstrip("-")


def _plan_curves(tables: Tables, threat: str, styles: Mapping[System, Style]) -> tuple[Panel, ...]:
    panels = []
    for i, title in enumerate(tables.list_attacks(threat)):
        lines = []
        for system, style in styles.items():
            found = [tables.find_under(system, threat, title, epsilon) for epsilon in tables.epsilons]
            points = [each for each in found if each is not None]
            if points:
                clean = tables.find_clean(system)
                lines.append((style, [clean, *points] if clean else points))
        if lines:
            alt = f"Accuracy under {title} ({threat}) against epsilon, a line a defence. The table of this threat model has the numbers."
            panels.append(
                Panel(_make_slug(title, tables.list_attacks(threat)) or str(i), title, alt, draw_curves(title, tables.epsilons, lines))
            )
    return tuple(panels)


def _plan_scatters(tables: Tables, threat: str, styles: Mapping[System, Style]) -> tuple[Panel, ...]:
    clean = {system: found for system in styles if (found := tables.find_clean(system))}
    if not clean:
        return ()
    low, high = min(each.low for each in clean.values()), max(each.high for each in clean.values())
    panels = []
    for epsilon in tables.epsilons:
        attacked = {system: _find_attacked(tables, system, threat, epsilon) for system in clean}
        points = [(styles[system], clean[system], found) for system, found in attacked.items() if found]
        if points:
            title = f"ε = {say_epsilon(epsilon)}"
            alt = f"Clean accuracy against accuracy under all {threat} attacks together at {title}. The headline table has the numbers."
            panels.append(Panel(f"epsilon-{say_number(epsilon)}", title, alt, draw_scatter(title, points, (low - 2, high + 2))))
    return tuple(panels)


def _find_attacked(tables: Tables, system: System, threat: str, epsilon: float) -> Measured | None:
    """The headline; without a defence, the grey-box one where the adaptive is missing."""
    return (tables.find_undefended if system.defence == UNDEFENDED else tables.find_headline)(system, threat, epsilon)
