"""What machines do in an hour: a table, and a calculator that runs in the reader's browser. Rates are those of docs/data."""

from __future__ import annotations

import html
import json
from typing import Any

from measured import find_cell, make_table, read_json

#: Megapixels of a photograph where none are given.
PHOTOGRAPH = 12.0
DECODE, ENCODE = "codec, decode jpeg megapixels per second", "codec, encode {} megapixels per second"
BYTES = "codec, {} bytes a pixel"


def list_machines() -> list[dict[str, Any]]:
    """The machines of docs/data/machines.json, each with its network's `rate` in megapixels a second."""
    return [{**each, "rate": find_number(each["data"], each["row"])} for each in read_json("machines")]


def find_number(name: str, row: str) -> float:
    """The number in the second column of a row: of "1.921 (1.719-2.122)" the first."""
    return float(find_cell(name, row).split()[0].replace(",", ""))


def compute_rate(machine: dict[str, Any], output: str = "png") -> float:
    """Megapixels a second from JPEG to PNG or JPEG.

    On a CPU the codec takes the network's own cores, beside a GPU it works at the same time.
    """
    coded = 1 / (1 / find_number("capacity", DECODE) + 1 / find_number("capacity", ENCODE.format(output))) * machine["cores"]
    return min(machine["rate"], coded) if machine["gpu"] else 1 / (1 / machine["rate"] + 1 / coded)


def make_speed() -> str:
    """A row a machine: the networks' own rate, and photographs of 12 megapixels an hour from JPEG to PNG."""
    rows = []
    for each in list_machines():
        hourly = 3600 * compute_rate(each) / PHOTOGRAPH
        rows.append([f"{each['machine']}, {each['how']}", f"`{each['weights']}`", f"{each['rate']:.3g}", f"{float(f'{hourly:.2g}'):,.0f}"])
    return make_table(["Machine", "Weights", "Networks, megapixels/s", "Photographs an hour"], rows)


def make_calculator() -> str:
    """A form for the page of assets/capacity.js, with what it computes from; without a script the table says it."""
    codec = {kind: [find_number("capacity", ENCODE.format(kind)), find_number("capacity", BYTES.format(kind))] for kind in ("png", "jpeg")}
    machines = [{"rate": each["rate"], "cores": each["cores"], "gpu": each["gpu"]} for each in list_machines()]
    known = {"machines": machines, "codec": codec, "decode": find_number("capacity", DECODE), "gigabits": 10}
    names = [html.escape(f"{each['machine']}, {each['how']}, {each['weights']}") for each in list_machines()]
    options = "".join(f'<option value="{number}">{name}</option>' for number, name in enumerate(names))
    return f"""<form id="capacity" data-known="{html.escape(json.dumps(known))}">
<label>Photographs <input name="count" type="number" min="1" value="1000000"></label>
<label>Megapixels each <input name="megapixels" type="number" min="0.001" step="any" value="{PHOTOGRAPH:g}"></label>
<label>Machine <select name="machine">{options}</select></label>
<label>How many of them <input name="machines" type="number" min="1" value="10"></label>
<label>Written as <select name="output"><option value="png">PNG (exact)</option>
<option value="jpeg">JPEG (changes the pixels again)</option></select></label>
<output></output>
</form>"""
