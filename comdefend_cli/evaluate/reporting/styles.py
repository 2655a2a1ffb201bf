"""How systems look in charts: the same number, colour and marker everywhere, told apart without colour too.

The six colours stay apart for all common kinds of colour blindness (Machado et al., 2009: least CIEDE2000 difference 19) and
have a contrast of 3 or more on white.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comdefend_cli.evaluate.reporting.tables import UNDEFENDED, System, Tables
from comdefend_cli.runtime.extras import require

INK, MUTED, GRID, PAPER = "#1c2127", "#5c6670", "#dde1e6", "#ffffff"
COLORS = ("#122ca1", "#c0597c", "#1d8fd6", "#848f13", "#670032", "#515901")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)))
#: What the page's style sheet may replace in inline charts, for dark screens.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", **{color: f"series-{i}" for i, color in enumerate(COLORS)}}


@dataclass(frozen=True)
class Style:
    """How a system looks in every chart."""

    number: int
    label: str
    color: str
    marker: str
    dashes: Any
    filled: bool

    def line(self) -> dict[str, Any]:
        """Arguments of a line."""
        return {"color": self.color, "linestyle": self.dashes, "linewidth": 1.6, **self.points()}

    def points(self) -> dict[str, Any]:
        """Arguments of its markers; hollow ones tell the second dozen from the first."""
        face = self.color if self.filled else PAPER
        return {"marker": self.marker, "markersize": 5.5, "markerfacecolor": face, "markeredgecolor": self.color, "markeredgewidth": 1.3}


def make_styles(tables: Tables) -> dict[System, Style]:
    """A style a label; systems of different charts that share a defence share it."""
    grouped = len(tables.group_systems()) > 1
    labels = {system: system.defence if grouped else tables.name_system(system) for system in tables.systems}
    bare = {labels[system] for system in tables.systems if system.defence == UNDEFENDED}
    styles, drawn = {}, 0
    for i, label in enumerate(dict.fromkeys(labels.values())):
        if label in bare and len(bare) == 1:  # The dotted line of the paper's figure.
            styles[label] = Style(i + 1, label, INK, "o", (0, (1, 1.5)), filled=False)
            continue
        turn = drawn // len(COLORS)
        marker, dashes = MARKERS[drawn % len(MARKERS)], DASHES[turn % len(DASHES)]
        styles[label] = Style(i + 1, label, COLORS[drawn % len(COLORS)], marker, dashes, filled=turn % 2 == 0)
        drawn += 1
    return {system: styles[label] for system, label in labels.items()}


def shorten(label: str, longest: int) -> str:
    """A label, its middle left out where it is longer; tables have it in full."""
    return label if len(label) <= longest else f"{label[: longest // 2]}…{label[len(label) - (longest - longest // 2 - 1) :]}"


def name_color(color: str) -> str:
    """A colour as inline charts have it: a variable that the page's style sheet may set."""
    return f"var(--{VARIABLES[color]}, {color})"


def say_dashes(style: Style) -> str:
    """The dashes of its line in a key, as SVG has them."""
    return " ".join(f"{2 * length:g}" for length in style.dashes[1])


def outline_marker(style: Style) -> str:
    """Its marker in a key, 8 pixels to each side of zero, as data of an SVG path."""
    marker = require("matplotlib.markers", extra="evaluate").MarkerStyle(style.marker)
    path = marker.get_path().transformed(marker.get_transform())
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    outline = "".join(
        letters[int(code)] + " ".join(f"{8 * value * (1 if i % 2 == 0 else -1):.2f}" for i, value in enumerate(points))
        for points, code in path.iter_segments(curves=True, simplify=False)
        if code != 79
    )
    return f"{outline}Z"
