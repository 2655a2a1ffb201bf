"""benchmarks/speed.py: it runs with tiny settings, its ratios are what it measured, and its table goes between the marks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "speed.py"


def speed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One round on a picture of 40x40."""
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
    assert result["flops_a_pixel"] == 3_130_560
    assert all(line["peak_mb"] > 50 for line in result["commands"])
    assert {"cpu", "threads", "versions", "rounds"} <= result.keys()


@pytest.mark.slow
def test_the_table_is_put_between_its_marks(result: dict[str, Any], tmp_path: Path) -> None:
    """Twice gives the same text; what is around it stays; a file without marks is refused."""
    (tmp_path / "speed.json").write_text(json.dumps(result))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")
    assert speed("--markdown", tmp_path / "speed.json", "--into", page).returncode == 0
    once = page.read_text()
    assert speed("--markdown", tmp_path / "speed.json", "--into", page).returncode == 0
    assert page.read_text() == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| default installation |" in once
    assert "old" not in once
    page.write_text("nothing\n")
    assert speed("--markdown", tmp_path / "speed.json", "--into", page).returncode != 0
