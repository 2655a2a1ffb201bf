"""benchmarks/speed.py: it runs with tiny settings, its ratios and its table are what it measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "speed.py"


def speed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One round on an image of 40x40."""
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    done = speed("--size", 40, "--crop", 40, "--patches", 1, "--small", 8, "--rounds", 1, "--threads", 1, "--json", "--out", path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_the_ratios_are_those_of_what_was_measured(result: dict[str, Any]) -> None:
    """The whole default command over the authors' way, and the default network over the fastest matrix product."""
    rates = {line["name"]: line["megapixels_per_second"] for line in result["methods"]}
    authors = next(rate for name, rate in rates.items() if name.startswith("authors"))
    limit = max(rate for name, rate in rates.items() if name.startswith("limit"))
    assert result["commands"][0]["name"] == "default installation"
    assert result["ratio_to_authors_way"] == pytest.approx(result["commands"][0]["megapixels_per_second"] / authors, abs=1e-3)
    assert result["share_of_limit"] == pytest.approx(rates["ours, network: default installation"] / limit, abs=1e-3)
    assert result["flops_a_pixel"] == 255_744
    assert all(line["peak_mb"] > 50 for line in result["commands"])
    assert {"cpu", "threads", "versions", "rounds"} <= result.keys()


@pytest.mark.slow
def test_the_table_says_what_was_measured(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a command and a method, with their rates."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("speed_report").table(result)
    default = result["commands"][0]
    line = next(line for line in table.splitlines() if line.startswith("| default installation |"))
    assert f"| {default['megapixels_per_second']:.4g} | {default['ratio_to_authors_way']:.2f} |" in line
    assert all(f"| {method['name']} |" in table for method in result["methods"])
