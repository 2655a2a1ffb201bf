"""Tables on standard output, on terminals of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comdefend_cli.cli import console

if TYPE_CHECKING:
    from rich.table import Column, Table

#: Characters at which a long word in a table may be broken.
_FOLDED = 12


def print_table(table: Table) -> None:
    """Write a table to standard output; each row as lines where the terminal is too narrow. Errors as of :func:`.console.write_out`."""
    for column in table.columns:
        column.overflow = "fold"  # Nothing is cut.
    wide = 3 * len(table.columns) + 1 + sum(map(_measure_column, table.columns)) > console.out.width
    with console.out.capture() as drawn:
        if wide:
            _print_rows(table)
        else:
            console.out.print(table, soft_wrap=False)
    console.write_out(drawn.get().encode())


def _measure_column(column: Column) -> int:
    """The columns that it takes at least: all of its longest cell if that may not be wrapped, else its longest word, up to `_FOLDED`."""
    cells = [str(cell) for cell in (column.header, *column.cells)]
    return max(map(len, cells)) if column.no_wrap else min(_FOLDED, max(len(word) for cell in cells for word in cell.split()))


def _print_rows(table: Table) -> None:
    """The title, then each cell of each row on a line of its own, behind the head of its column."""
    if table.title:
        console.out.print(table.title, soft_wrap=False)
    heads = [" ".join(str(column.header).split()) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        console.out.print()
        for head, cell in zip(heads, row, strict=True):
            console.out.print(f"{head}: {cell}", soft_wrap=False, overflow="fold")
