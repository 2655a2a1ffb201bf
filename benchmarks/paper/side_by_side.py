"""Published and measured side by side: cells, reasons and tables as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from comdefend_cli.evaluate.stats import compute_percentages

NOT_MEASURED = "not measured"


def interval(correct: int, n: int) -> str:
    """An accuracy in percent with its 95 % interval: "9.6 (7.3-12.5)"."""
    found = compute_percentages(correct, n)
    return f"{found['accuracy']:.1f} ({found['low']:.1f}-{found['high']:.1f})"


def beside(paper: str, found: str, *, measured: bool = True) -> str:
    """A cell: "paper 41<br>measured 9.6 (7.3-12.5)"; without "paper" where it has no such number."""
    own = f"measured {found}" if measured else found
    return f"paper {paper}<br>{own}" if paper else own


class Reasons:
    """Why cells were not measured, each with a number."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def say(self, why: str) -> str:
        """What stands in the cell: "not measured (1)"."""
        if why not in self.found:
            self.found.append(why)
        return f"{NOT_MEASURED} ({self.found.index(why) + 1})"

    def text(self) -> str:
        """All of them as a list."""
        return "Not measured:\n\n" + "\n".join(f"{number}. {why}" for number, why in enumerate(self.found, 1))


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Raises:
        ValueError: a row of another length than the head.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{len(row)} cells under {len(head)} heads: {row}")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
