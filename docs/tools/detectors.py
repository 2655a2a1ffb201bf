"""Tables of what `benchmarks/detection.py` measured."""

from __future__ import annotations

from typing import Any

from measured import make_table, name_defence, read_json

NAMES = {"fgsm": "FGSM", "bim": "BIM", "mi-fgsm": "MI-FGSM", "pgd": "PGD", "deepfool": "DeepFool", "adaptive": "**adaptive**"}


def make_detection(name: str) -> str:
    """A row an attack and epsilon, a column a squeezer: percent of successful attacks that are flagged, and the area under the curve."""
    found = read_json(name)
    squeezers = list(dict.fromkeys(row["squeezer"] for row in found["rows"]))
    cells = {(row["attack"], row["epsilon"], row["squeezer"]): row for row in found["rows"]}
    rows = []
    for attack, epsilon in dict.fromkeys((row["attack"], row["epsilon"]) for row in found["rows"]):
        rows.append([NAMES.get(attack, attack), f"{epsilon}/255", *(_say(cells[attack, epsilon, squeezer]) for squeezer in squeezers)])
    false = {row["squeezer"]: row["false_alarms"] for row in found["rows"]}
    rows.append(["clean", "", *(f"{false[squeezer]:g}<br><small>n = {found['images']}</small>" for squeezer in squeezers)])
    note = f"Threshold from {found['calibration']} other clean images. [{name}.json](data/{name}.json)"
    return make_table(["Attack", "Epsilon", *map(name_defence, squeezers)], rows) + f"\n\n{note}"


def _say(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "-"
    return f"{row['detected']:g}<br><small>{row['auc']:.2f}, n = {row['n']}</small>"
