"""The weights that ship, from their own headers, the registry and docs/data/weights.json, as the tables of the documents."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from measured import make_table, read_json

TEST_SETS = {"cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST"}
WEIGHTS = Path(__file__).resolve().parent.parent.parent / "weights"


def make_table_of_all() -> str:
    """A row a weight file, with what it was measured to rebuild."""
    rows = []
    for name, found in read_json("weights").items():
        header = read_header(name)
        measured = [f"{each['psnr_db']:.2f}, {each['ssim']:.4f}" for each in (find_test(name)[1], read_json("fidelity")[name]["kodak"])]
        rows.append([f"`{name}`", found["role"], f"{header['channels']}, {header['bits']}", found["trained_on"], *measured])
    return make_table(
        ["Weights", "What for", "Channels, bits", "Trained on", "PSNR dB, SSIM on test images", "PSNR dB, SSIM on Kodak"], rows
    )


def make_overview(*names: str) -> str:
    """README's rows: what each weight file is for."""
    known, rebuilt = read_json("weights"), read_json("fidelity")
    rows = [[f"`{name}`", known[name]["role"], known[name]["trained_on"], f"{rebuilt[name]['kodak']['psnr_db']:.1f} dB"] for name in names]
    return make_table(["Weights", "What for", "Trained on", "PSNR on Kodak"], rows)


def make_card(name: str) -> str:
    """The facts of one weight file.

    Raises:
        ValueError: no weights of that name ship, or they were not measured.
    """
    header, found = read_header(name), read_json("weights").get(name)
    if found is None:
        raise ValueError(f"docs/data/weights.json has no {name}")
    (test_set, test), kodak = find_test(name), read_json("fidelity")[name]["kodak"]
    noise = f"{header['input_noise']:g} of 255" if header["input_noise"] else "none"
    rows = {
        "What for": found["role"],
        "Networks": f"{found['family']}; {header['parameters']:,} parameters; {found['multiply_adds']} multiply-adds a pixel",
        "Channels, bits of code a pixel": f"{header['channels']}, {header['bits']}",
        "Noise it adds before it denoises": f"{noise} (standard deviation)",
        "Trained on": found["trained_on"],
        f"PSNR, SSIM on {test_set}": f"{test['psnr_db']:.2f} dB, {test['ssim']:.4f} (n = {test['n']:,})",
        "PSNR, SSIM on Kodak images 1 to 12": f"{kodak['psnr_db']:.2f} dB, {kodak['ssim']:.4f} (n = {kodak['n']})",
        "File": f"`{name}.safetensors`, {header['bytes'] / 1e6:.1f} MB",
        "SHA-256": f"`{header['sha256']}`",
        "Licence": "MIT",
    }
    return make_table(["Weights", f"`{name}`"], [list(row) for row in rows.items()])


def make_precision() -> str:
    """What bfloat16 changes, a row a weight file."""
    rows = []
    for name, found in read_json("fidelity").items():
        changed = found["bfloat16"]
        rows.append([f"`{name}`", "bfloat16", f"{100 * changed['bits_flipped']:.2f} %", f"{changed['psnr_to_float32_db']:.1f} dB"])
    return make_table(["Weights", "Precision", "Code bits flipped", "PSNR to the float32 result"], rows)


def make_colors() -> str:
    """What becomes of flat fields, drawings and the colours of photographs, a column a weight file."""
    found = read_json("colors")
    rows: dict[str, list[str]] = {}
    for each in found.values():
        drawings, kinds = each["drawings"], each["drawings"]["kinds"]
        shifts = ", ".join(f"{shift:.1f}" for shift in each["kodak"]["shift"])
        values = {
            "flat fields, 64x64: largest mean error of a channel, of 255": f"{each['fields']['largest']:.1f} (n = {each['fields']['n']})",
            "the same, mean of all": f"{each['fields']['mean']:.1f}",
            "drawings (text, lines, a diagram, stripes, chequers, 1 bit, 6x6, 2x2): PSNR dB, mean and least": _say_pair(drawings),
            "text": _say_pair(kinds["text"]),
            "thin lines": _say_pair(kinds["lines"]),
            "Kodak: mean shift of each channel, of 255": f"{shifts} (n = {each['kodak']['n']})",
        }
        for what, value in values.items():
            rows.setdefault(what, [what]).append(value)
    return make_table(["", *(f"`{name}`" for name in found)], rows.values())


def _say_pair(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1f}, {found['least']:.1f} (n = {found['n']})" if "mean" in found else "-"


def find_test(name: str) -> tuple[str, dict[str, Any]]:
    """The test set of weights that ship, and what they were measured to rebuild of it."""
    key = next(key for key in TEST_SETS if key in read_json("fidelity")[name])
    return TEST_SETS[key], read_json("fidelity")[name][key]


def read_header(name: str) -> dict[str, Any]:
    """What a weight file says of itself: channels, bits, input_noise, parameters, and its size in bytes and SHA-256.

    Raises:
        ValueError: no weights of that name ship.
    """
    registry = json.loads((WEIGHTS / "registry.json").read_text())
    if name not in registry:
        raise ValueError(f"no weights ship that are called {name}")
    file = WEIGHTS / registry[name]["file"]
    with file.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    about = json.loads(header.pop("__metadata__")["comdefend"])
    return {
        "channels": about["architecture"]["channels"],
        "bits": about["architecture"]["bits"],
        "input_noise": about.get("input_noise", 0.0),
        "parameters": sum(math.prod(entry["shape"]) for entry in header.values()),
        "bytes": file.stat().st_size,
        "sha256": registry[name]["sha256"],
    }
