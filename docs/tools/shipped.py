"""The weights that ship, from their own headers, the registry and docs/data/weights.json, as the tables of the documents."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from measured import make_table, read_json

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "weights"


def make_table_of_all() -> str:
    """A row a weight file, with what it was measured to rebuild."""
    rows = []
    for name, found in read_json("weights").items():
        header = read_header(name)
        measured = [f"{found[f'{kind}_psnr']:.2f}, {found[f'{kind}_ssim']:.4f}" for kind in ("test", "kodak")]
        rows.append([f"`{name}`", found["role"], f"{header['channels']}, {header['bits']}", found["trained_on"], *measured])
    return make_table(
        ["Weights", "What for", "Channels, bits", "Trained on", "PSNR dB, SSIM on test images", "PSNR dB, SSIM on Kodak"], rows
    )


def make_overview(*names: str) -> str:
    """README's rows: what each weight file is for."""
    known = read_json("weights")
    rows = [[f"`{name}`", known[name]["role"], known[name]["trained_on"], f"{known[name]['kodak_psnr']:.1f} dB"] for name in names]
    return make_table(["Weights", "What for", "Trained on", "PSNR on Kodak"], rows)


def make_card(name: str) -> str:
    """The facts of one weight file.

    Raises:
        ValueError: no weights of that name ship, or they were not measured.
    """
    header, found = read_header(name), read_json("weights").get(name)
    if found is None:
        raise ValueError(f"docs/data/weights.json has no {name}")
    noise = f"{header['input_noise']:g} of 255" if header["input_noise"] else "none"
    rows = {
        "What for": found["role"],
        "Networks": f"{found['family']}; {header['parameters']:,} parameters; {found['multiply_adds']} multiply-adds a pixel",
        "Channels, bits of code a pixel": f"{header['channels']}, {header['bits']}",
        "Noise it adds before it denoises": f"{noise} (standard deviation)",
        "Trained on": found["trained_on"],
        f"PSNR, SSIM on {found['test_set']}": f"{found['test_psnr']:.2f} dB, {found['test_ssim']:.4f} (n = {found['test_n']:,})",
        "PSNR, SSIM on Kodak images 1 to 12": f"{found['kodak_psnr']:.2f} dB, {found['kodak_ssim']:.4f} (n = {found['kodak_n']})",
        "File": f"`{name}.safetensors`, {header['bytes'] / 1e6:.1f} MB",
        "SHA-256": f"`{header['sha256']}`",
        "Licence": "MIT",
    }
    return make_table(["", ""], [list(row) for row in rows.items()])


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
