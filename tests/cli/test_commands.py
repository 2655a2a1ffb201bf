"""All commands, walked through: help, documents, defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from comdefend_cli.cli import app

ROOT = Path(__file__).parent.parent.parent


def walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below one, and itself, by the words that call it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}".strip())


COMMANDS = dict(walk(typer.main.get_command(app)))
#: Whose help is still to be rewritten.
LATER = ("purify-dir", "train", "train-classifier", "train-baseline", "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_sentences(name: str) -> None:
    """Every command and every option has help that begins with a capital, ends with a full stop, and is no fragment such as "Of ..."."""
    texts = {"the command": COMMANDS[name].help}
    texts |= {parameter.name: parameter.help for parameter in COMMANDS[name].params if not parameter.name.endswith("_completion")}
    for parameter, text in texts.items():
        assert text, f"{name}: {parameter} has no help"
        if name not in LATER:
            assert re.match(r"(?s)(?!Of )[A-Z].*\.$", text.strip()), f"{name}: {parameter}: {text!r} is no sentence"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if name and not hasattr(command, "commands")])
def test_every_command_is_in_the_documents(name: str) -> None:
    """README or a page of docs shows how each command is called."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert any(f"comdefend {name}" in page.read_text(encoding="utf-8") for page in pages)
