"""The documents: their numbers are those of docs/data, and what they tell the reader to type does what they say."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.stats import compute_percentages

ROOT = Path(__file__).parent.parent.parent
TOOLS = ROOT / "docs" / "tools"


def find_blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a page that are of that language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


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
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports one of docs/tools, which finds what is beside it as when run as a script."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_documents_say_what_was_measured() -> None:
    """Every number in place, and the notebook, is what docs/data and the tutorial say."""
    done = subprocess.run([sys.executable, TOOLS / "make.py", "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_results_become_tables(tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results.json is stored a line a measurement, its headline counted image by image, and shown by directives."""
    store, measured, directives = tool("store"), tool("measured"), tool("directives")
    monkeypatch.setattr(measured, "DATA", tmp_path)
    results = results_of(
        ("none", "clean", None, "1111111110"),
        ("none", "grey-box", 8.0, "1100000001"),
        ("none", "grey-box", 8.0, "0110000000"),
        ("hgd:weights=some/w.safetensors", "clean", None, "1111111100"),
        ("hgd:weights=some/w.safetensors", "adaptive", 2.0, "1000000000"),
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    store.main([f"seen={tmp_path / 'results.json'}"], tmp_path)
    assert "c,none,grey-box,8,all,A2,10.0,1.8,40.4,10" in (tmp_path / "seen.csv").read_text().splitlines()
    page = directives.fill_in_place("It is <!-- accuracy seen none clean -->?<!-- / -->.\n<!-- headline seen -->\n<!-- / -->\n", "a/b.md")
    assert "It is <!-- accuracy seen none clean -->90\N{NO-BREAK SPACE}%<!-- / -->." in page and "(../data/seen.csv)" in page
    assert "| `hgd:weights=w.safetensors` | 80.0<br><small>49.0–94.3</small> | - | 10.0<br><small>1.8–40.4, A4</small> |" in page
    assert directives.fill_in_place(page, "a/b.md") == page
    attacks = directives.fill_built("    {{ attacks seen grey-box }}\n", "b.md")
    assert all(line.startswith("    ") for line in attacks.splitlines() if line) and "30.0 <small>(10.8–60.3) </small>" in attacks
    for wrong in ("{{ accuracy seen none adaptive 8 }}", "{{ headline absent }}", "{{ nothing }}", "{{ headline }}"):
        with pytest.raises(ValueError, match=r"page\.md: "):
            directives.fill_built(wrong, "page.md")
    with pytest.raises(UsageError, match=r"absent\.json"):
        store.main([f"x={tmp_path / 'absent.json'}"], tmp_path)


def test_benchmarks_become_tables(tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Rows of a benchmark are lines of one table, all else a name and a value; Markdown keeps its text and tables."""
    store = tool("store")
    result = {"rows": [{"peak_mb": 1234.5, "way": "strips"}, {"peak_mb": None, "way": "whole"}], "on": {"cpu": {"cores": 2}}}
    (tmp_path / "one.json").write_text(json.dumps(result))
    (tmp_path / "two.md").write_text("### Table 5\n\nOf /a/w.safetensors.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    store.main([f"{name}={tmp_path / file}" for name, file in (("x", "one.json"), ("y", "two.md"))], tmp_path)
    rows, rest = json.loads((tmp_path / "x.json").read_text())
    assert rows == {"columns": ["peak mb", "way"], "rows": [["1,234.5", "strips"], ["", "whole"]]}
    assert rest["rows"] == [["on, cpu, cores", "2"]]
    (tmp_path / "fidelity.json").write_text('{"a": {"x": 1}, "b": {"x": 2}}')
    (tmp_path / "printed.json").write_text('b {"x": 3}\n{"results": {"b": {"x": 3}}, "torch": "2"}\n')
    store.main([f"fidelity={tmp_path / 'printed.json'}"], tmp_path)
    assert json.loads((tmp_path / "fidelity.json").read_text()) == {"a": {"x": 1}, "b": {"x": 3}}
    text = [{"text": "### Table 5"}, {"text": "Of w.safetensors."}, {"columns": ["a", "b"], "rows": [["1", "2"]]}]
    assert json.loads((tmp_path / "y.json").read_text()) == text


def test_commands_reference_names_every_option(tool: Callable[[str], ModuleType]) -> None:
    """Every command has a section, and every option that its help shows is in it."""
    commands = tool("commands")
    sections = dict(re.findall(r"^## (comdefend [\w -]+)\n(.*?)(?=^## |\Z)", commands.make_reference(), re.MULTILINE | re.DOTALL))
    for name, command in commands.list_commands():
        shown = {
            option for each in command.params for option in each.opts if option.startswith("--") and not getattr(each, "hidden", False)
        }
        assert not {option for option in shown if option not in sections[name]}, name


def test_readme_runs(tmp_path: Path) -> None:
    """Its Python, as it stands."""
    for code in find_blocks("README.md", "python"):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path) -> None:
    """Its commands and its Python, in order; the purifier helps as much as the page says, within what another CPU may change."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (command,) = [line for block in find_blocks("docs/tutorial.md", "sh") for line in block.splitlines() if line.startswith("comdefend")]
    subprocess.run([sys.executable, "-m", "comdefend_cli", *command.split()[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "cat.png").is_file() and (tmp_path / "cat-compare.png").is_file()
    code = "\n".join(find_blocks("docs/tutorial.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    said, promised = (
        dict(re.findall(r"^(.*): (\d+)%$", text, re.MULTILINE)) for text in (done.stdout, "".join(find_blocks("docs/tutorial.md", "text")))
    )
    assert said.keys() == promised.keys()
    for what, value in said.items():
        assert abs(int(value) - int(promised[what])) <= 10, (what, value)
