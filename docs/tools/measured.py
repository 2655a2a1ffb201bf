"""What was measured, from docs/data, as the tables and numbers of the documents.

Two kinds of files, both written by docs/tools/store.py: an evaluation is a CSV file of one measurement a line (:class:`Evaluation`);
everything else is JSON, a list of parts that are either text or a table.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).resolve().parent.parent / "data"
#: A cell of the paper's tables: its number, if it has one, and the measured one with its interval.
PAPER = re.compile(r"(?:paper (.*)<br>)?measured (.*)")
#: The columns of an evaluation.
COLUMNS = ("classifier", "defence", "threat", "epsilon", "attack", "gradient", "accuracy", "low", "high", "n")
NO_BREAK = "\N{NO-BREAK SPACE}"
THREATS = ("grey-box", "adaptive", "black-box")
#: What is smoothed in that table: summaries of `comdefend certify`, and what is said of their classifiers. Their certificates also hold for
#: every attacker within `BALL` levels.
SMOOTHED = {
    "certified-cifar10-0.25": "",
    "certified-small-0.25": ", trained for this classifier",
    "certified-tuned-0.25": ", `medium` trained for it",
}
BALL = 2
#: Weights made for README's very classifier; the evaluation that has them; what the stronger attackers of benchmarks/adaptive.py left of
#: them, which stands in their adaptive columns.
TRAINED, MORE, STRONG = "adversarial.safetensors", "fast-cifar10-adaptive", "adversarial"
#: The defences that README shows.
SHOWN = ("none", "comdefend-fast", "comdefend-fast-cifar10", "comdefend-12bit-denoise", "jpeg:quality=75", "median:size=3")
SHOWN_IMAGES = "500"
#: In the column of attacks: all together, counted image by image; or the lowest of them, as earlier releases counted.
TOGETHER, LOWEST = "all", "lowest"


class Row(NamedTuple):
    """One measurement: accuracy and its 95 % interval in percent of n images, epsilon in 8-bit steps ("" for clean).

    Where `attack` is `TOGETHER` or `LOWEST`, `gradient` names the attack that alone did the most harm.
    """

    classifier: str
    defence: str
    threat: str
    epsilon: str
    attack: str
    gradient: str
    accuracy: str
    low: str
    high: str
    n: str


class Evaluation:
    """The measurements of one `comdefend evaluate`.

    Raises:
        ValueError: docs/data has no such file, or it has other columns.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        file = DATA / f"{name}.csv"
        if not file.is_file():
            raise ValueError(f"docs/data has no {file.name}")
        with file.open(newline="") as opened:
            lines = list(csv.reader(opened))
        if tuple(lines[0]) != COLUMNS:
            raise ValueError(f"{file.name} has other columns than {', '.join(COLUMNS)}")
        self.rows = [Row(*line) for line in lines[1:]]
        self.systems = list(dict.fromkeys((row.classifier, row.defence) for row in self.rows))
        self.many = len({row.classifier for row in self.rows}) > 1

    def find(self, defence: str, threat: str, epsilon: str = "", classifier: str | None = None) -> Row | None:
        """Accuracy on clean images, or what is left under all attacks of a threat model; None where it was not measured."""
        for row in self.rows:
            here = (row.defence, row.threat, row.epsilon) == (defence, threat, epsilon) and classifier in (None, row.classifier)
            if here and (threat == "clean" or row.attack in (TOGETHER, LOWEST)):
                return row
        return None

    def list_epsilons(self, threat: str) -> list[str]:
        """Every epsilon of a threat model, ascending."""
        return sorted({row.epsilon for row in self.rows if row.threat == threat}, key=float)

    def count(self, threat: str) -> str:
        """How many images stand behind a threat model's numbers: "500", or "20 to 50"."""
        found = sorted({int(row.n) for row in self.rows if row.threat == threat})
        return " to ".join(map(str, found[:1] + found[1:][-1:]))

    def make_headline(self) -> str:
        """A row a defence: clean, then what is left under all attacks of each threat model and epsilon."""
        columns = [(threat, epsilon) for threat in THREATS for epsilon in self.list_epsilons(threat)]
        head = [
            *(["Classifier"] if self.many else []),
            "Defence",
            f"Clean<br><small>n = {self.count('clean')}</small>",
            *(f"{threat.capitalize()}, {epsilon}/255<br><small>n = {self.count(threat)}</small>" for threat, epsilon in columns),
        ]
        body = []
        for classifier, defence in self.systems:
            found = [self.find(defence, "clean", "", classifier), *(self.find(defence, *column, classifier) for column in columns)]
            body.append([*([classifier] if self.many else []), name_defence(defence), *map(_say_headline, found)])
        how = (
            "images classified right that every attack of the threat model failed on"
            if not any(row.attack == LOWEST for row in self.rows)
            else "the lowest accuracy under any one attack of the threat model"
        )
        note = f"Accuracy in % with its 95 % interval: {how}; the attack named is the one that alone did the most harm."
        return f"{make_table(head, body)}\n\n{note} {self.link()}"

    def make_attacks(self, threat: str) -> str:
        """A row a defence and epsilon, a column an attack."""
        rows = [row for row in self.rows if row.threat == threat and row.attack not in (TOGETHER, LOWEST)]
        attacks = list(dict.fromkeys(row.attack for row in rows))
        body = []
        for classifier, defence in self.systems:
            for epsilon in self.list_epsilons(threat):
                own = [row for row in rows if (row.classifier, row.defence, row.epsilon) == (classifier, defence, epsilon)]
                if own:
                    cells = ["<br>".join(map(_say_attack, (row for row in own if row.attack == attack))) for attack in attacks]
                    body.append(
                        [*([classifier] if self.many else []), name_defence(defence), f"{epsilon}/255", *(each or "-" for each in cells)]
                    )
        head = [*(["Classifier"] if self.many else []), "Defence", "Epsilon", *attacks]
        return f"{make_table(head, body)}\n\nAccuracy in % with its 95 % interval, n = {self.count(threat)}. {self.link()}"

    def link(self) -> str:
        """A link to the file, as from the root of the documents."""
        return f"[{self.name}.csv](data/{self.name}.csv)"


def name_defence(defence: str) -> str:
    """A defence as tables name it."""
    return defence if defence == "none" else f"`{defence}`"


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def make_protection() -> str:
    """Clean, grey-box, adaptive and certified accuracy on CIFAR-10, a row a defence of README."""
    columns = [("clean", ""), ("grey-box", "2"), ("grey-box", "8"), ("adaptive", "2"), ("adaptive", "8")]
    head = ["Defence", *(f"{threat.capitalize()}, {epsilon}/255" if epsilon else threat.capitalize() for threat, epsilon in columns)]
    rows = []
    for defence in SHOWN:
        rows.append([name_defence(defence), *(_say_shown(find_shown(defence, *column)) for column in columns), "-"])
    own = [find_shown(TRAINED, *column) for column in columns[:3]]
    strong = [f"{find_strong(STRONG, 'worst', epsilon):.1f}" for _, epsilon in columns[3:]]
    rows.append([f"`{TRAINED}`, trained against attacks on this classifier", *map(_say_shown, own), *strong, "-"])
    for name, how in SMOOTHED.items():
        summary = read_json(name)
        held = {row["name"]: f"{row['accuracy']:.1f}" for row in summary["certified"]}
        least = next((f"at least {value}" for radius, value in held.items() if f"{BALL}/255" in radius), "-")
        what = f"smoothed, `{summary['weights']}`{how} (n = {summary['images']})"
        rows.append([what, held["0"], least, "-", least, "-", held["0.25"]])
    return make_table([*head, "Certified, L2 0.25"], rows)


def find_shown(defence: str, threat: str, epsilon: str = "") -> Row | None:
    """What README shows of a defence: of the evaluation of more adaptive images, where it is there, else of the one of more defences."""
    for name in (MORE, "fast-cifar10"):
        if (row := read_evaluation(name).find(defence, threat, epsilon)) is not None:
            return row
    return None


def say_share(row: dict[str, Any]) -> str:
    """An accuracy with its 95 % interval below."""
    return f"{row['accuracy']:.1f}<br><small>{row['low']}\N{EN DASH}{row['high']}</small>"


def find_strong(name: str, attack: str, epsilon: str) -> float:
    """The accuracy in percent that an attack of benchmarks/adaptive.py left; of the attack "clean" at epsilon 0.

    Raises:
        ValueError: it was not measured.
    """
    for row in read_json(name)["rows"]:
        if (row["attack"], float(row["epsilon"])) == (attack, float(epsilon)):
            return float(row["accuracy"])
    raise ValueError(f"{name}: {attack} was not made at {epsilon}")


def make_parts(name: str) -> str:
    """The text and tables of a JSON file of docs/data, as Markdown; of an evaluation, its headline."""
    if (DATA / f"{name}.csv").is_file():
        return read_evaluation(name).make_headline()
    made = []
    for part in read_json(name):
        made.append(part["text"] if "text" in part else make_table(part["columns"], ([*map(_lighten, row)] for row in part["rows"])))
    return "\n\n".join(made)


@cache
def read_evaluation(name: str) -> Evaluation:
    """The evaluation of that name."""
    return Evaluation(name)


def read_json(name: str) -> Any:
    """The JSON file of docs/data of that name.

    Raises:
        ValueError: there is none.
    """
    file = DATA / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"docs/data has no {file.name}")
    return json.loads(file.read_text())


def find_cell(name: str, row: str) -> str:
    """The second cell of the row that begins with that text, of any table of a JSON file of docs/data.

    Raises:
        ValueError: there is no such row.
    """
    for part in read_json(name):
        for cells in part.get("rows", []):
            if cells[0] == row:
                return str(cells[1])
    raise ValueError(f"docs/data/{name}.json has no row {row}")


def say_accuracy(name: str, defence: str, threat: str, epsilon: str = "", classifier: str | None = None) -> str:
    """A number for a sentence: "82 %".

    Raises:
        ValueError: it was not measured.
    """
    found = read_evaluation(name).find(defence, threat, epsilon, classifier)
    if found is None:
        raise ValueError(f"{name}: {defence} was not measured: {threat} {epsilon}")
    return f"{float(found.accuracy):g}{NO_BREAK}%"


def _lighten(cell: str) -> str:
    """A cell of the paper's tables with the measured number first, and long names of defences where they may break."""
    found = PAPER.fullmatch(cell)
    if found:
        value, _, interval = found[2].partition(" ")
        said = [f"{value} <small>{interval}</small>", *([f"<small>paper {found[1]}</small>"] if found[1] else [])]
        return "<br>".join(said)
    return cell.replace(":weights=", ":<wbr>weights=").replace(",epsilon=", ",<wbr>epsilon=")


def _say_interval(row: Row) -> str:
    return f"{row.low}\N{EN DASH}{row.high}"


def _say_shown(row: Row | None) -> str:
    """An accuracy, with its n where that is not what the table's heading says."""
    return "-" if row is None else row.accuracy + (f" (n = {row.n})" if row.n != SHOWN_IMAGES else "")


def _say_headline(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.accuracy}<br><small>{', '.join(filter(None, (_say_interval(row), row.gradient)))}</small>"


def _say_attack(row: Row) -> str:
    return f"{row.accuracy} <small>({_say_interval(row)}) {row.gradient}</small>"
