"""`make bench`: benchmark each part against a reference implementation and print one table.

`python tests/bench [PART…]` runs these parts only. Each part is a module in this folder with a function `rows()`.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from _part import measure
from _table import Growth, Row, growth_table, table, write
from rich.console import Console

from gptlab import project

PARTS = [
    "training",
    "loop",
    "evaluation",
    "checkpointing",
    "start",
    "tokenizing",
    "vocabulary",
    "sampling",
    "wandb_cost",
    "analysis_load",
    "gpu",
    "growth",
    "planning",
]


def main(patterns: list[str]) -> None:
    """Run the parts that match the patterns; print and write the rows after each part."""
    for pattern in patterns:
        if not any(fnmatch(part, pattern) for part in PARTS):
            print(f"error: there is no part {pattern}; the parts are: {', '.join(PARTS)}", file=sys.stderr)
            sys.exit(2)
    parts = [part for part in PARTS if not patterns or any(fnmatch(part, pattern) for pattern in patterns)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    rows: list[Row] = []
    growth: list[Growth] = []
    failed: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for part in parts:
            console.print(f"\n{part}", style="bold")
            measured, error = pool.submit(measure, part).result()
            if error:
                print(error, file=sys.stderr)
                failed.append(part)
            compared = [one for one in measured if isinstance(one, Row)]
            grown = [one for one in measured if isinstance(one, Growth)]
            if compared:
                console.print(table(compared))
            if grown:
                console.print(growth_table(grown))
            rows += compared
            growth += grown
            _write(rows, growth, console)  # after each part, because all parts take long
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


def _write(rows: list[Row], growth: list[Growth], console: Console) -> None:
    folder, paths = project.runs_directory(), list[Path]()
    if rows:
        paths += write([row.document() for row in rows], folder, "bench")
    if growth:
        paths += write([point for one in growth for point in one.documents()], folder, "bench-growth")
    if paths:
        console.print(f"written: {', '.join(project.display_path(path) for path in paths)}", style="dim")


if __name__ == "__main__":
    main(sys.argv[1:])
