"""`gptlab runs`: a line per run with its status, its loss and the course of it, its age and its cost."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptlab.console import duration, printable
from gptlab.sparkline import bars, shortened
from gptlab.tracking.metrics import last_value, read_metrics
from gptlab.tracking.run import Run

STYLES = {"running": "cyan", "complete": "green", "interrupted": "yellow", "diverged": "red", "failed": "red"}
SPARKLINE = 16
MOST = 1e9
"""Seconds and losses beyond it are nobody's, and would not fit a line."""
PIPE = 240
"""Columns where nobody looks: nothing is cut off."""


@dataclass(frozen=True)
class Line:
    """What the list says of a run."""

    summary: dict[str, Any]
    course: list[float]
    """The training loss in at most `SPARKLINE` parts."""
    elapsed_s: float
    created: datetime


def line(run: Run) -> Line:
    """A run's line.

    Raises:
        GptlabError: A file of the run cannot be read.
    """
    rows = read_metrics(run.directory)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    elapsed = last_value(rows, "elapsed_s")
    return Line(
        run.summary(),
        shortened(losses, SPARKLINE),
        elapsed if elapsed is not None and math.isfinite(elapsed) else 0.0,
        datetime.fromisoformat(run.record.created),
    )


def render(lines: list[Line]) -> None:
    """Print the list."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PIPE)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True, overflow="fold")
    for heading in ("status", "step", "val loss", "training loss", "age", "trained for"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in {"step", "val loss", "age"} else "left")
    for each in lines:
        about = each.summary
        step = f"{about['step']}" if about["step"] == about["steps"] else f"{about['step']} of {about['steps']}"
        table.add_row(
            printable(about["run"]),
            Text(about["status"], STYLES[about["status"]]),
            step,
            _loss(about["val_loss"]),
            bars(each.course),
            age(datetime.now(UTC) - each.created),
            duration(each.elapsed_s) if each.elapsed_s < MOST else "–",
        )
    console.print(table)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < MOST else f"{value:.4g}"


def age(delta: timedelta) -> str:
    """`3 min`, `5 h` or `12 d`."""
    minutes = max(int(delta.total_seconds()), 0) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h" if minutes < 2 * 1440 else f"{minutes // 1440} d"
