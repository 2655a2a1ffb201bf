"""What documents say of docs/data, by directives.

    headline NAME                    the headline table of docs/data/NAME.csv
    attacks NAME THREAT              its table of single attacks under a threat model
    accuracy NAME DEFENCE THREAT [EPSILON [CLASSIFIER]]     one of its numbers; THREAT may be clean
    protection                       README's table: the default beside JPEG and a median
    tables NAME                      the tables of docs/data/NAME.json
    weights, overview NAME ...       the weights that ship: all, and README's rows
    card NAME                        of one weight file
    precision, colors                what bfloat16 changes; what becomes of colours and drawings
    speed, calculator                of docs/data/machines.json: a table, and a form that computes
    detection NAME                   of docs/data/NAME.json: what the detector found
    certified NAME ...               of docs/data/NAME.json: what was certified
    proved NAME RADIUS               one of its numbers
    strong NAME ...                  of docs/data/NAME.json: what strong attackers left who know the purifier
    stood NAME ATTACK EPSILON        one of its numbers
    commands, variables              the reference of the commands, and of the environment variables

What is short stands in the page, so that it can be read there: `<!-- accuracy fast-cifar10 comdefend-fast clean -->82 %<!-- / -->`, which
make.py fills in anew. What is long stands in the built pages alone: `{{ attacks fast-cifar10 adaptive }}`, which hook.py fills in.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import PurePosixPath

import attackers
import certificates
import commands
import detectors
import machines
import measured
import shipped

MAKERS: dict[str, Callable[..., str]] = {
    "headline": lambda name: measured.read_evaluation(name).make_headline(),
    "attacks": lambda name, threat: measured.read_evaluation(name).make_attacks(threat),
    "accuracy": measured.say_accuracy,
    "protection": measured.make_protection,
    "tables": measured.make_parts,
    "weights": shipped.make_table_of_all,
    "overview": shipped.make_overview,
    "card": shipped.make_card,
    "precision": shipped.make_precision,
    "colors": shipped.make_colors,
    "speed": machines.make_speed,
    "calculator": machines.make_calculator,
    "commands": commands.make_reference,
    "variables": commands.make_variables,
    "detection": detectors.make_detection,
    "certified": certificates.make_certified,
    "proved": certificates.say_certified,
    "strong": attackers.make_strong,
    "stood": attackers.say_strong,
}
BUILT = re.compile(r"(^ +)?\{\{ (\w+(?: [^\s{}]+)*) \}\}", re.MULTILINE)
IN_PLACE = re.compile(r"(^)?<!-- (\w+(?: [^\s<>]+)*) -->.*?<!-- / -->", re.MULTILINE | re.DOTALL)


def fill_built(text: str, page: str) -> str:
    """The page at that path below docs, with what stands in braces filled in.

    Raises:
        ValueError: a directive that is none, or what it names is not there; it says on which page.
    """
    return BUILT.sub(lambda found: textwrap.indent(_make(found[2], page), found[1] or ""), text)


def fill_in_place(text: str, page: str) -> str:
    """A document at that path below the repository, or below docs, with what stands between marks made anew.

    Raises:
        ValueError: a directive that is none, what it names is not there, or a number that begins a line, which Markdown takes for HTML.
    """

    def make(found: re.Match[str]) -> str:
        made, block = _make(found[2], page), found[1] is not None
        if block and "\n" not in made:
            raise ValueError(f"{page}: {found[2]}: a number must not begin a line")
        return f"<!-- {found[2]} -->\n\n{made}\n\n<!-- / -->" if block else f"<!-- {found[2]} -->{made}<!-- / -->"

    return IN_PLACE.sub(make, text)


def _make(directive: str, page: str) -> str:
    name, *arguments = directive.split()
    if name not in MAKERS:
        raise ValueError(f"{page}: {directive}: there is no {name}; there are {', '.join(MAKERS)}")
    try:
        return MAKERS[name](*arguments).replace("](data/", f"]({'../' * len(PurePosixPath(page).parent.parts)}data/")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{page}: {directive}: {error}") from error
