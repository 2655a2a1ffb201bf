"""benchmarks/paste.py: what was measured goes between a document's marks, and nothing else changes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from comdefend_cli.errors import UsageError


@pytest.fixture
def paste(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """It, which finds what is beside it as when run as a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    return importlib.import_module("paste")


def test_measured_tables_are_put_into_documents(paste: ModuleType, tmp_path: Path) -> None:
    """Between the marks stands the file, or of results.json the lowest accuracy of each threat model; all else stays."""
    cells = [
        {"classifier": "c", "defence": defence, "threat": threat, "epsilon": epsilon, "accuracy": accuracy}
        for defence, threat, epsilon, accuracy in (
            ("none", "clean", None, 91.0),
            ("none", "grey-box", 2.0, 14.0),
            ("none", "grey-box", 2.0, 12.5),
            ("hgd:weights=some/w.safetensors", "clean", None, 84.2),
            ("hgd:weights=some/w.safetensors", "adaptive", 8.0, 1.0),
        )
    ]
    systems = [{"classifier": "c", "defence": defence} for defence in ("none", "hgd:weights=some/w.safetensors")]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells, "systems": systems}))
    (tmp_path / "table5.md").write_text("### Table 5\n\n| /a/b/w.safetensors |\n")
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n")
    paste.main([str(document), f"a={tmp_path / 'results.json'}", f"b={tmp_path / 'table5.md'}"])
    lines = document.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["before", "after"] and "between" in lines and "old" not in lines
    assert "| none | 91.0 | 12.5 | - |" in lines and "| `hgd:weights=w.safetensors` | 84.2 | - | 1.0 |" in lines
    assert lines[lines.index("<!-- b -->") + 2 :][:3] == ["### Table 5", "", "| w.safetensors |"]
    again = document.read_text()
    paste.main([str(document), f"b={tmp_path / 'table5.md'}"])
    assert document.read_text() == again
    (tmp_path / "grey.json").write_text(json.dumps({"cells": cells[:3], "systems": systems[:1]}))
    paste.main([str(document), f"a={tmp_path / 'grey.json'}"])
    assert "| defence | clean | grey-box, 2 |" in document.read_text().splitlines()
    with pytest.raises(UsageError, match="no part between <!-- c -->"):
        paste.main([str(document), f"c={tmp_path / 'table5.md'}"])


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
