"""`gptlab runs`: the runs with status, loss, age and training time."""

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from gptlab.terminal.console import Console
from gptlab.terminal.sparkline import bars, resample
from gptlab.terminal.tables import borderless
from gptlab.terminal.text import format_age, format_duration, printable
from gptlab.tracking.lineage import in_tree_order
from gptlab.tracking.run import Run, all_runs, skip_unreadable

logger = logging.getLogger(__name__)

STYLES = {"running": "cyan", "complete": "green", "interrupted": "yellow", "diverged": "red", "failed": "red"}
DAMAGED = Text("damaged", "red")
SPARKLINE_WIDTH = 16
MAX_INDENT = 8
"""Runs that are deeper in the tree are not indented further, so that a line stays short."""
MAX_SHOWN = 1e9
"""Larger losses are printed in scientific notation and longer training times not at all, so that a line stays short."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the list."""

    facts: dict[str, Any]
    """What `gptlab runs --json` prints."""
    losses: list[float]
    """Training losses, averaged to at most `SPARKLINE_WIDTH` values."""
    elapsed_s: float
    created: datetime
    tokenizer: str = ""
    """Its SHA-256."""
    bits_per_byte: float | None = None
    """Of the newest validation."""


def list_runs() -> list[RunSummary]:
    """Summarize all runs. Unreadable ones are skipped with a warning."""
    return list(skip_unreadable(summarize, all_runs()))


def summarize(run: Run) -> RunSummary:
    """Summarize a run.

    Raises:
        GptlabError: A file of the run cannot be read.
    """
    history = run.history()
    losses = [row["train/loss"] for row in history.sample_rows() if "train/loss" in row]
    facts = {
        "run": run.id,
        "name": run.record.spec.name,
        "seed": run.record.seed,
        "status": history.status,
        "step": history.step,
        "steps": history.target,
        "val_loss": history.last("val/loss"),
        "directory": str(run.directory),
    }
    facts |= run.record.parent_facts()
    elapsed = history.last("elapsed_s")
    if run.is_copy:
        facts["copy"] = run.directory.name
    if history.damage:
        logger.warning("%s; its losses are not shown", history.damage)
        facts["damage"] = history.damage
    return RunSummary(
        facts,
        resample(losses, SPARKLINE_WIDTH),
        elapsed if elapsed is not None and math.isfinite(elapsed) else 0.0,
        datetime.fromisoformat(run.record.created),
        run.record.tokenizer_sha256,
        history.last("val/bpb"),
    )


def render(summaries: list[RunSummary]) -> None:
    """Print one line per run, with bits per byte if tokenizers differ: losses per token do not compare across them."""
    console = Console()
    if not summaries:
        console.print("no runs yet; start one with: make exp NAME=tiny")
        return
    bits = ("bits/byte",) if len({summary.tokenizer for summary in summaries}) > 1 else ()
    headings = ("run", "status", "step", "val loss", *bits, "training loss", "age", "trained for")
    table = borderless(*headings, right=("step", "val loss", *bits, "age"))
    for column in table.columns:
        column.no_wrap = True
    for summary, depth in _as_tree(summaries):
        facts = summary.facts
        step = f"{facts['step']}" if facts["step"] == facts["steps"] else f"{facts['step']} of {facts['steps']}"
        values = [facts["val_loss"], *([summary.bits_per_byte] if bits else [])]
        table.add_row(
            printable(_label(facts, depth)),
            Text(facts["status"], STYLES[facts["status"]]),
            step,
            *(DAMAGED if "damage" in facts else _format_loss(value) for value in values),
            bars(summary.losses),
            format_age(datetime.now(UTC) - summary.created),
            format_duration(summary.elapsed_s) if summary.elapsed_s < MAX_SHOWN else "–",
        )
    console.table(table)


def _as_tree(summaries: list[RunSummary]) -> list[tuple[RunSummary, int]]:
    """The runs with their depth in the tree, each after its parent."""
    numbers = {summary.facts["run"]: number for number, summary in enumerate(summaries) if "copy" not in summary.facts}
    parents = [numbers.get(summary.facts.get("parent", {}).get("run")) for summary in summaries]
    return [(summaries[number], depth) for number, depth in in_tree_order(dict(enumerate(parents)))]


def _label(facts: dict[str, Any], depth: int) -> str:
    label = f"{facts['copy']}, a copy of {facts['run']}" if "copy" in facts else str(facts["run"])
    if parent := facts.get("parent"):
        label += f" ({parent['by']} {'' if depth else parent['run']}@{parent['step']})"
    return f"{'  ' * (min(depth, MAX_INDENT) - 1)}└ {label}" if depth else label


def _format_loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < MAX_SHOWN else f"{value:.4g}"
