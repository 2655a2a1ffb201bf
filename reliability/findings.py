"""What the scripts of this folder find, as JSON that docs/tools/store.py takes: lists of records become tables."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write_findings(path: Path, tables: dict[str, list[dict[str, Any]]], **more: Any) -> None:
    """Write tables, and what else there is to say: at least how many were tried, and with what."""
    path.write_text(json.dumps({**tables, **more, **describe_versions()}, indent=1) + "\n")


def describe_versions(*packages: str) -> dict[str, str]:
    """The CPU, Python, Pillow and PyTorch of this machine, and further packages."""
    names = ("pillow", "torch", *packages)
    return {"CPU": _name_cpu(), "Python": platform.python_version(), **{name: version(name) for name in names}}


def _name_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} cores of {models[0]}" if models else platform.machine()
