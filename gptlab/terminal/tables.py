"""Tables in one style: no borders, no cell cut off. `Console.table` prints them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""


def borderless(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Create a table without borders.

    Args:
        columns: The headings.
        right: The headings of right-aligned columns.
        title: A line above the table.
    """
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0)
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


@dataclass(frozen=True)
class Column:
    """A column of a table that has to fit into a terminal."""

    heading: str
    cells: Sequence[str | Text]
    right: bool = False
    """Whether it is right-aligned."""
    rank: int = 0
    """Columns with the highest rank are left out first; 0 stays."""

    @property
    def width(self) -> int:
        """Number of terminal cells."""
        return max(cell_len(str(cell)) for cell in (self.heading, *self.cells))


def fitting(columns: Sequence[Column], width: int) -> tuple[Table, list[str]]:
    """Return a table of the columns that fit into a width, without folded lines, and the headings of the others."""
    shown = list(columns)
    while sum(column.width + GAP for column in shown) - GAP > width and max(column.rank for column in shown):
        last_of_highest_rank = max(reversed(range(len(shown))), key=lambda number: shown[number].rank)
        del shown[last_of_highest_rank]
    table = borderless(*(c.heading for c in shown), right=tuple(c.heading for c in shown if c.right))
    for column in table.columns:
        column.no_wrap = True
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table, [column.heading for column in columns if column not in shown]
