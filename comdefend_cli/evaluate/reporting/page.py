"""`report.html`: one self-contained page with what was measured, how, and how to read it.

No scripts, and nothing loaded from anywhere: a content security policy in the page forbids both. Jinja2 escapes all text, names of
defences, classifiers and classes included; what the page says stands in `templates/`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.evaluate.certified import list_radii
from comdefend_cli.evaluate.reporting import listings
from comdefend_cli.evaluate.reporting.charts import make_charts
from comdefend_cli.evaluate.reporting.drawing import draw_inline
from comdefend_cli.evaluate.reporting.gallery import AMPLIFY, GalleryItem
from comdefend_cli.evaluate.reporting.styles import PAPER, name_color, outline_marker, say_dashes
from comdefend_cli.evaluate.reporting.tables import FEW, UNDEFENDED, System, Tables, make_printable, say_sizes
from comdefend_cli.evaluate.reporting.text import CERTIFIED, EXPLAINED
from comdefend_cli.evaluate.reporting.verdicts import MEANING, say_verdict
from comdefend_cli.runtime.extras import require

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(results: Mapping[str, Any], gallery: Sequence[GalleryItem] = ()) -> str:
    """The page.

    Args:
        results: the contents of `results.json`.
        gallery: images to show; may be empty.

    Returns:
        A whole HTML document.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed, or the results are of a format that this release does not read.
    """
    tables = Tables(results)
    defences = {system.defence for system in tables.systems}
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            tables=tables,
            results=results,
            few=tables.list_few(),
            least=FEW,
            alarms=results.get("alarms", []),
            defended=len(defences - {UNDEFENDED}),
            undefended=UNDEFENDED in defences,
            charts=sorted(make_charts(tables), key=lambda chart: chart.kind == "curves"),
            certificates=results.get("certificates", []),
            facts=listings.list_facts(results),
            gallery=gallery,
        )
    )


@functools.cache
def _environment() -> Environment:
    """With everything that the templates call."""
    jinja2, markupsafe = require("jinja2", extra="evaluate"), require("markupsafe", extra="evaluate")
    made: Environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.PackageLoader("comdefend_cli", "evaluate/reporting/templates"),
        finalize=lambda value: make_printable(value) if type(value) is str else value,  # Not Markup, which is checked where it is made.
    )
    made.filters |= {
        "breakable": _break_name,
        "count_noun": listings.count_noun,
        "name_color": name_color,
        "name_epsilon": lambda epsilon: f"ε = {say_epsilon(epsilon)}",
        "outline_marker": outline_marker,
        "say_dashes": say_dashes,
        "with_first": lambda column: (column, column.first),
    }
    made.globals |= {
        "amplify": AMPLIFY,
        "draw": lambda chart, panel: markupsafe.Markup(draw_inline(chart, panel)),
        "certified_note": CERTIFIED,
        "explained": EXPLAINED,
        "list_columns": listings.list_columns,
        "list_radii": list_radii,
        "group_columns": lambda columns: [
            (f"ε = {say_epsilon(epsilon)}", len([*group])) for epsilon, group in groupby(columns, lambda column: column.epsilon)
        ],
        "spread_groups": lambda attacks, epsilons: [(attack, len(epsilons)) for attack in attacks],
        "spread_columns": lambda attacks, epsilons: [(epsilon, epsilon == epsilons[0]) for _ in attacks for epsilon in epsilons],
        "list_attacks": listings.list_attacks,
        "list_cells": listings.list_cells,
        "list_systems": listings.list_systems,
        "meaning": MEANING,
        "name_alarmed": _name_alarmed,
        "paper": PAPER,
        "say_column_sizes": listings.say_column_sizes,
        "say_sizes": say_sizes,
        "verdict": say_verdict,
    }
    return made


def _break_name(text: str) -> Markup:
    """A name that may break where it has punctuation."""
    markup: type[Markup] = require("markupsafe", extra="evaluate").Markup
    parts = re.split(r"(?<=[:,=\-/_+])", make_printable(text))
    return markup().join(markup("{}<wbr>" if part and not part[-1].isalnum() else "{}").format(part) for part in parts)


def _name_alarmed(tables: Tables, alarm: Mapping[str, str]) -> str:
    """The system that an alarm rang for."""
    return tables.name_system(System(make_printable(alarm["classifier"]), make_printable(alarm["defence"])))
