#!/usr/bin/env python3
"""Make anew what the documents show of docs/data: numbers and short tables in place, the charts, and the notebook of the tutorial.

    python docs/tools/make.py [--check]

What is long, `mkdocs build` fills in (hook.py). With --check nothing is written, and a file that is not what docs/data and the tutorial say
is an error; charts are not looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent)]

from directives import fill_in_place  # noqa: E402  # After the repository, whose package it looks at, is to be found.
from notebook import make_notebook  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Make them, or check them."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is not up to date")
    arguments = made.parse_args(argv)
    texts = {page: fill_in_place(page.read_text(), page.relative_to(DOCS).as_posix()) for page in sorted(DOCS.rglob("*.md"))}
    texts |= {page: fill_in_place(page.read_text(), page.name) for page in (ROOT / "README.md", ROOT / "SECURITY.md")}
    texts[TUTORIAL.with_suffix(".ipynb")] = make_notebook(texts[TUTORIAL])
    old = [file for file, text in texts.items() if not file.is_file() or file.read_text() != text]
    if arguments.check:
        sys.exit(f"not up to date: {', '.join(file.name for file in old)}; run python docs/tools/make.py" if old else 0)
    from charts import draw_all

    for file in old:
        file.write_text(texts[file])
    print(*old, *draw_all(), sep="\n")


if __name__ == "__main__":
    main()
