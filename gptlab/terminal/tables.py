"""Tables in one style: no borders, no cell cut off. `Console.table` prints them."""

from rich.table import Table


def borderless(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Create a table without borders.

    Args:
        columns: The headings.
        right: The headings of right-aligned columns.
        title: A line above the table.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
