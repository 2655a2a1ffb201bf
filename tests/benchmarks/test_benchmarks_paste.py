"""benchmarks/paste.py: what was measured goes between a document's marks, and nothing else changes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.stats import compute_percentages


def results_of(*measured: tuple[str, str, float | None, str]) -> dict[str, Any]:
    """results.json as a release wrote it whose headlines were the lowest mean over attacks: defence, threat, epsilon, outcomes."""
    cells = [
        {
            **{"classifier": "c", "defence": defence, "threat": threat, "epsilon": epsilon, "outcomes": outcomes, "settings": {}},
            **{"attack": None if threat == "clean" else f"a{i}", "title": f"A{i}", "gradient": None, "n": len(outcomes)},
            **{"seconds": 1.0, "mean_linf": 1.0, "mean_l2": 0.1},
            **compute_percentages(outcomes.count("1"), len(outcomes)),
        }
        for i, (defence, threat, epsilon, outcomes) in enumerate(measured)
    ]
    systems = [{"classifier": "c", "defence": defence} for defence in dict.fromkeys(cell["defence"] for cell in cells)]
    return {"format_version": 1, "cells": cells, "systems": systems, "headlines": [cell for cell in cells if cell["attack"]]}


@pytest.fixture
def paste(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """It, which finds what is beside it as when run as a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    return importlib.import_module("paste")


def test_measured_tables_are_put_into_documents(paste: ModuleType, tmp_path: Path) -> None:
    """Between the marks stands the file, or of results.json what all attacks of each threat model leave; all else stays."""
    results = results_of(
        ("none", "clean", None, "1111111110"),
        ("none", "grey-box", 2.0, "1100000001"),
        ("none", "grey-box", 2.0, "0110000000"),
        ("hgd:weights=some/w.safetensors", "clean", None, "1111111100"),
        ("hgd:weights=some/w.safetensors", "adaptive", 8.0, "1000000000"),
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "table5.md").write_text("### Table 5\n\n| /a/b/w.safetensors |\n")
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n")
    paste.main([str(document), f"a={tmp_path / 'results.json'}", f"b={tmp_path / 'table5.md'}"])
    lines = document.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["before", "after"] and "between" in lines and "old" not in lines
    assert "| none | 90.0 | 10.0 | - |" in lines and "| `hgd:weights=w.safetensors` | 80.0 | - | 10.0 |" in lines
    assert lines[lines.index("<!-- b -->") + 2 :][:3] == ["### Table 5", "", "| w.safetensors |"]
    again = document.read_text()
    paste.main([str(document), f"b={tmp_path / 'table5.md'}"])
    assert document.read_text() == again
    (tmp_path / "grey.json").write_text(json.dumps({**results, "cells": results["cells"][:3], "systems": results["systems"][:1]}))
    paste.main([str(document), f"a={tmp_path / 'grey.json'}"])
    assert "| defence | clean | grey-box, 2 |" in document.read_text().splitlines()
    with pytest.raises(UsageError, match="no part between <!-- c -->"):
        paste.main([str(document), f"c={tmp_path / 'table5.md'}"])


def test_tables_are_made_anew(paste: ModuleType, tmp_path: Path) -> None:
    """From a stored results.json alone its tables.md is made anew, by what each image met; what is none is said and left."""
    headlines = importlib.import_module("headlines")
    (tmp_path / "tables.md").write_text("old")
    results = results_of(("none", "clean", None, "1111"), ("none", "grey-box", 8.0, "1100"), ("none", "grey-box", 8.0, "0111"))
    (tmp_path / "results.json").write_text(json.dumps(results))
    headlines.main([str(tmp_path / "results.json")])
    text = (tmp_path / "tables.md").read_text()
    assert "| none | 100.0 (51.0-100.0) | 8 | 25.0 (4.6-69.9) A1 |" in text and "50.0 (15.0-85.0)" in text
    (tmp_path / "other.json").write_text("[]")
    for name in ("other.json", "absent.json"):
        with pytest.raises(UsageError, match=name):
            headlines.main([str(tmp_path / name)])
    assert (tmp_path / "tables.md").read_text() == text


def test_a_benchmarks_result_becomes_tables(paste: ModuleType) -> None:
    """Rows are lines of one table; everything else is a name and a value, whatever it lies in."""
    result = {
        "rows": [{"peak_mb": 1234.5, "way": "strips"}, {"peak_mb": None, "way": "whole"}],
        "on": {"cpu": {"cores": 2}},
        "not_measured": ["gpu"],
    }
    assert paste.tables(result).splitlines() == [
        "| peak mb | way |",
        "| --- | --- |",
        "| 1,234.5 | strips |",
        "|  | whole |",
        "",
        "|  |  |",
        "| --- | --- |",
        "| on, cpu, cores | 2 |",
        "| not measured | gpu |",
    ]
    curve = {
        "rounds": 1,
        "cpu": "c",
        "threads": 1,
        "cores": 1,
        "load_before": 0,
        "image": "p",
        "python": "3",
        "versions": {},
        "skipped": [],
    }
    assert "| 64 | 0.5 |" in paste.tables(
        {"curve": [{"tile": 64, "default installation": 0.5}], "bands": [{"band": 8192, "float32": 0.25}], **curve}
    )
    assert "| 2 | 0.75 |" in paste.tables(
        {"batches": [{"batch": 64, "float32": 0.5}], "by_threads": [{"threads": 2, "float32": 0.75}], **curve}
    )
