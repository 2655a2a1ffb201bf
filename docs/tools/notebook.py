"""A page of the documents as a Jupyter notebook: its code as cells, with the output that the page shows, and its text between."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

#: A notebook starts in its own folder, and the page's commands in the checkout.
START = "%cd .."
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
#: What a notebook does not need: making and entering an environment of its own.
SKIPPED = re.compile(r"^python3 -m venv .*\n", re.MULTILINE)
DIRECTIVE = re.compile(r"\{\{ .*? \}\}")


def make_notebook(page: str) -> str:
    """A notebook (format 4.5) of a Markdown page.

    Raises:
        ValueError: the page has directives, which a notebook could not fill in.
    """
    if DIRECTIVE.search(page):
        raise ValueError("a page that becomes a notebook must have no directives")
    cells: list[dict[str, Any]] = []
    _add_code(cells, START)
    end = 0
    for found in BLOCK.finditer(page):
        _add_text(cells, page[end : found.start()])
        end = found.end()
        kind, code = found[1], found[2]
        if kind == "text":
            cells[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": _lines(code)}]
        else:
            _add_code(cells, _make_magic(code) if kind == "sh" else code)
    _add_text(cells, page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{number}{cell['source']}".encode()).hexdigest()[:8]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False) + "\n"


def _make_magic(code: str) -> str:
    """Lines of a shell as a notebook takes them."""
    lines = SKIPPED.sub("", code).replace("\\\n", " ").splitlines()
    return "".join(f"%{line}\n" if line.startswith("pip ") else f"!{line}\n" for line in lines)


def _add_text(cells: list[dict[str, Any]], text: str) -> None:
    text = text.strip()
    if text:
        cells.append({"cell_type": "markdown", "metadata": {}, "source": _lines(text)})


def _add_code(cells: list[dict[str, Any]], code: str) -> None:
    cells.append({"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(code.strip())})


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
