"""`make bench`: everything that a user waits for beside a peer, as one table.

`python tests/bench [PART…]` measures these parts only. Each part is a module here with a function `rows()`.
"""

import importlib
import itertools
import sys
from fnmatch import fnmatch
from pathlib import Path

from _table import Row, table, write
from rich.console import Console

from gptlab import project

PARTS = ["tokenising", "checkpointing"]


def main(wanted: list[str]) -> None:
    """Measure, print the rows of each part as they come, and write them all."""
    parts = [part for part in PARTS if not wanted or any(fnmatch(part, pattern) for pattern in wanted)]
    if not parts:
        sys.exit(f"there is no such part; there are: {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    rows: list[Row] = []
    for part in parts:
        console.print(f"measuring: {part}", style="dim")
        rows += importlib.import_module(part).rows()
    for part, those in itertools.groupby(rows, key=lambda row: row.part):
        console.print(f"\n{part}", style="bold")
        console.print(table(those))
    folder = project.runs_directory()
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"\nwritten: {', '.join(project.shown(path) for path in write(rows, Path(folder)))}")


if __name__ == "__main__":
    main(sys.argv[1:])
