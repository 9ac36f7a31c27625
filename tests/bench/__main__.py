"""`make bench`: everything that a user waits for beside a peer, as one table.

`python tests/bench [PART…]` measures these parts only. Each part is a module here with a function `rows()`.
"""

import importlib
import sys
from fnmatch import fnmatch

from _table import Row, table, write
from rich.console import Console

from gptlab import project

PARTS = [
    "training",
    "loop",
    "checkpointing",
    "start",
    "tokenising",
    "sampling",
    "wandb_cost",
    "analysis_load",
]


def main(wanted: list[str]) -> None:
    """Measure, print the rows of each part as they come, and write them all."""
    parts = [part for part in PARTS if not wanted or any(fnmatch(part, pattern) for pattern in wanted)]
    if not parts:
        sys.exit(f"there is no such part; there are: {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    rows: list[Row] = []
    failed = []
    for part in parts:
        console.print(f"\n{part}", style="bold")
        try:
            measured = list(importlib.import_module(part).rows())
        except Exception:
            console.print_exception()
            failed.append(part)
            continue
        console.print(table(measured))
        rows += measured
        paths = write(rows, project.runs_directory())  # each time: the whole takes long
    if rows:
        console.print(f"\nwritten: {', '.join(project.shown(path) for path in paths)}")
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
