"""Measured tables go into the pages of docs/ by the program that measured them, between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's two marks.

    Raises:
        SystemExit: the page has not these marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    old = page.read_text()
    if begin not in old or end not in old:
        raise SystemExit(f"{page}: has no place for {name}")
    before, _, rest = old.partition(begin)
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}")
