"""Charts as files and as parts of a page.

Drawn with matplotlib's object interface on the Agg and SVG backends, without global state; the same results give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from comdefend_cli.errors import ComdefendError, explain
from comdefend_cli.evaluate.reporting.axes import LEADER, LINE, LONGEST
from comdefend_cli.evaluate.reporting.charts import Chart, Panel, make_charts
from comdefend_cli.evaluate.reporting.styles import INK, MUTED, PAPER, VARIABLES, Style, shorten
from comdefend_cli.evaluate.reporting.tables import Tables
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import refuse_existing, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points.
FONT = 8.5
#: Inches: the axes, and the room at their left, top and bottom, for a title and labels.
CURVES, SCATTER = (2.95, 2.45), (2.4, 2.6)
LEFT, TOP, BOTTOM, HEAD = 0.56, 0.36, 0.5, 0.5
DPI = 150
#: Characters of a name in a key.
KEY = 48
RC = {
    "font.family": ["DejaVu Sans"],  # Comes with matplotlib: the same everywhere.
    "font.size": FONT,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": FONT + 1.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "text.parse_math": False,  # Names may hold dollar signs.
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.hashsalt": "comdefend",
}


def write_charts(results: Mapping[str, Any], folder: Path, *, overwrite: bool) -> list[Path]:
    """Write every chart as PNG and SVG.

    Args:
        results: the contents of `results.json`.
        folder: made if need be.
        overwrite: whether files that exist are replaced.

    Returns:
        The files: `curves-THREAT.png`, `clean-against-THREAT.png`, with `.svg` beside each; with many systems, a set a classifier.

    Raises:
        UsageError: matplotlib is not installed, a file exists, or the results are of another format.
        ComdefendError: the folder or a file cannot be written.
    """
    made = make_charts(Tables(results))
    paths = [folder / f"{chart.name}.{ending}" for chart in made for ending in ("png", "svg")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComdefendError(f"{folder}: cannot make this folder: {explain(error)}") from error
    for path in paths:
        refuse_existing(path, overwrite=overwrite)
    for path, (chart, ending) in zip(paths, ((chart, ending) for chart in made for ending in ("png", "svg")), strict=True):
        write_atomically(path, _draw_file(chart, ending), overwrite=overwrite)
    return paths


def _make_handles(styles: Sequence[Style]) -> list[Any]:
    lines = require("matplotlib.lines", extra="evaluate")
    return [lines.Line2D([], [], label=f"{style.number}  {shorten(style.label, KEY)}", **style.line()) for style in styles]


def _measure_cell(chart: Chart) -> tuple[float, float, float, float]:
    """Width and height in inches of a panel with its labels, then of its axes alone."""
    width, height = CURVES if chart.kind == "curves" else SCATTER
    height = max(height, len(chart.styles) * LINE / 72)
    longest = 2 if chart.kind == "curves" else 4 + min(LONGEST, max(len(style.label) for style in chart.styles))
    labels = (LEADER - 1) * width + _measure_text(longest) + 0.1
    return LEFT + width + labels, TOP + height + BOTTOM, width, height


def _measure_text(characters: int) -> float:
    """Inches, of usual text in DejaVu Sans, which is wider than most fonts that may stand in for it."""
    return characters * 0.6 * FONT / 72


def _draw_file(chart: Chart, ending: str) -> bytes:
    """The whole chart with its key, as bytes of a PNG or SVG file."""
    matplotlib = require("matplotlib", extra="evaluate")
    wide, high, width, height = _measure_cell(chart)
    columns = min(len(chart.panels), 3 if chart.kind == "curves" else 2)
    rows = -(-len(chart.panels) // columns)
    abreast = 2 if columns > 1 else 1
    keyed = chart.kind == "curves" or any(len(style.label) > LONGEST for style in chart.styles)
    key = -(-len(chart.styles) // abreast) * LINE * 1.35 / 72 + 0.2 if keyed else 0.0
    said = max(_measure_text(len(chart.title)) * (FONT + 3) / FONT, _measure_text(len(chart.note)))
    total = max(columns * wide, said + 0.2), HEAD + rows * high + key
    with matplotlib.rc_context(RC):
        figure = _make_figure(total)
        figure.text(0.1 / total[0], 1 - 0.1 / total[1], chart.title, va="top", fontsize=FONT + 3)
        figure.text(0.1 / total[0], 1 - 0.33 / total[1], chart.note, va="top", color=MUTED)
        for i, panel in enumerate(chart.panels):
            row, column = divmod(i, columns)
            bottom = total[1] - HEAD - (row + 1) * high + BOTTOM
            _draw(figure, panel, (column * wide + LEFT, bottom, width, height))
        if keyed:
            options = {"frameon": False, "handlelength": 4.0, "borderaxespad": 0.3}
            figure.legend(handles=_make_handles(chart.styles), loc="lower left", ncols=abreast, **options)
        return _save(figure, ending)


def draw_inline(chart: Chart, panel: Panel) -> str:
    """A panel as an SVG element to stand in an HTML page.

    Text stays text, colours are CSS variables with the light ones as fallback, identifiers are unique among all panels of all charts.
    Which number is which system is for the page to say: :attr:`Chart.styles`.

    Raises:
        UsageError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="evaluate")
    wide, high, width, height = _measure_cell(chart)
    with matplotlib.rc_context({**RC, "svg.fonttype": "none"}):
        figure = _make_figure((wide, high))
        _draw(figure, panel, (LEFT, BOTTOM, width, height))
        return _make_inline(_save(figure, "svg").decode(), panel, f"{chart.name}-{panel.name}")


def _make_figure(size: tuple[float, float]) -> Figure:
    figures = require("matplotlib.figure", extra="evaluate")
    figure: Figure = figures.Figure(size)
    return figure


def _draw(figure: Figure, panel: Panel, inches: tuple[float, float, float, float]) -> None:
    """Draw a panel on axes at left, bottom, width, height in inches."""
    width, height = figure.get_size_inches()
    left, bottom, across, up = inches
    panel.draw(figure.add_axes((left / width, bottom / height, across / width, up / height)))


def _save(figure: Figure, ending: str) -> bytes:
    """Bytes without a date; a PNG with a palette, which is a quarter of the size and looks the same."""
    file = io.BytesIO()
    if ending == "svg":
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return file.getvalue()
    figure.savefig(file, format="png", dpi=DPI)
    image = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, dpi=(DPI, DPI))
    return file.getvalue()


def _make_inline(svg: str, panel: Panel, prefix: str) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.DOTALL)  # The paper; the page has its own.
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for color, name in VARIABLES.items():
        svg = svg.replace(f": {color}", f": var(--{name}, {color})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(panel.alt)}"', 1)
