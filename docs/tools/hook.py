"""MkDocs calls this for every page: what stands in double braces is filled in, see directives.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
# MkDocs loads this file by its path, so what is beside it and the package are found only so.
sys.path[:0] = [str(TOOLS), str(TOOLS.parent.parent)]

import directives  # noqa: E402


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with every directive filled in."""
    return directives.fill_built(markdown, page.file.src_uri)
