"""`gptlab runs`: the runs with what differs between them, status, loss, age, training time and disk space."""

import logging
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from gptlab import project
from gptlab.commands.run_filters import Filters, check_sort_key, natural_order, sort_value
from gptlab.commands.run_jobs import cell, jobs_of_runs, render_reasons, tells_more
from gptlab.commands.run_progress import status_text
from gptlab.commands.run_settings import is_spec_field, setting, short_names, varied_settings
from gptlab.slurm.queue import JobState
from gptlab.terminal.console import Console
from gptlab.terminal.sparkline import bars, resample
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import format_age, format_bytes, format_duration, plural, printable
from gptlab.tracking.lineage import Child, all_children, in_tree_order
from gptlab.tracking.records import RunRecord
from gptlab.tracking.run import TRASH, Run, all_runs, skip_unreadable
from gptlab.tracking.space import disk_usage, find_removable
from gptlab.tracking.verifications import (
    REPRODUCED,
    StoredVerification,
    current_verification,
    describe_verification,
    verified_facts,
)

logger = logging.getLogger(__name__)

DAMAGED = Text("damaged", "red")
SPARKLINE_WIDTH = 16
MAX_INDENT = 8
"""Runs that are deeper in the tree are not indented further, so that a line stays short."""
MAX_SHOWN = 1e9
"""Larger losses are printed in scientific notation and longer training times not at all, so that a line stays short."""
ALWAYS_VARIED = 3
"""How many of the settings that differ stay even in a narrow terminal."""


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
    varied: dict[str, str] = field(default_factory=dict)
    """Its settings that differ between the listed runs, as text by dotted key."""
    verified: StoredVerification | None = None
    """The verification that says most about it as it is now."""
    job: JobState | None = None
    """Its newest job of Slurm, if that says more than the status."""


def list_runs(
    filters: Filters | None = None, sort: str | None = None, jobs: list[JobState] | None = None
) -> list[RunSummary]:
    """Summarize the runs that pass the filters, in natural order of their names or sorted by a column or a setting.

    Unreadable runs are skipped with a warning.

    Args:
        filters: What a run must be.
        sort: The column or setting.
        jobs: The jobs of Slurm to show with their runs.

    Raises:
        BadInputError: There is no such column or setting to sort by.
    """
    if sort is not None:
        check_sort_key(sort)
    filters = filters or Filters()
    children = all_children(project.runs_directory())
    records: dict[str, RunRecord] = {}
    of_runs = jobs_of_runs(jobs or [])

    def read(run: Run) -> RunSummary:
        summary = summarize(run, children)
        job = None if run.is_copy else of_runs.get(run.id)
        if job and tells_more(job, summary.facts["status"]):
            summary = replace(summary, job=job, facts=summary.facts | {"slurm": job.document()})
        records[summary.facts["directory"]] = run.record
        return summary

    chosen = [run for run in all_runs() if filters.accept_record(run.record)]
    chosen.sort(key=lambda run: natural_order(run.directory.name))
    summaries = [each for each in skip_unreadable(read, chosen) if filters.accept_facts(each.facts)]
    listed = [records[summary.facts["directory"]] for summary in summaries]
    if sort is not None:
        order = sorted(range(len(listed)), key=lambda i: sort_value(sort, summaries[i].facts, listed[i]))
        summaries, listed = [summaries[i] for i in order], [listed[i] for i in order]
    for key, values in varied_settings(listed).items():
        for summary, record, value in zip(summaries, listed, values, strict=True):
            summary.varied[key] = value
            summary.facts["varied"][key] = setting(record, key) if is_spec_field(key) else value
    return summaries


def summarize(run: Run, children: Sequence[Child] | None = None) -> RunSummary:
    """Summarize a run.

    Args:
        run: The run.
        children: See `find_removable`.

    Raises:
        GptlabError: A file of the run cannot be read.
    """
    history = run.history()
    losses = [row["train/loss"] for row in history.sample_rows() if "train/loss" in row]
    verified = current_verification(run.directory)
    elapsed, removable = history.last("elapsed_s"), find_removable(run, history, children)
    facts = {
        "run": run.id,
        "name": run.record.spec.name,
        "seed": run.record.seed,
        "status": history.status,
        "step": history.step,
        "steps": history.target,
        "val_loss": history.last("val/loss"),
        "directory": str(run.directory),
        "val_bpb": history.last("val/bpb"),
        "created": run.record.created,
        "elapsed_s": elapsed,
        "tags": sorted({tag for start in history.starts for tag in start.get("tags", [])}),
        "varied": {},
        "disk_bytes": disk_usage(run.directory),
        "verified": verified_facts(verified),
        "removable_bytes": {"optimizer": removable.optimizer_bytes, "snapshots": removable.snapshot_bytes},
    }
    facts |= run.record.parent_facts()
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
        verified=verified,
    )


def render(summaries: list[RunSummary], *, tree: bool = True, filtered: bool = False) -> None:
    """Print one line per run, with bits per byte if tokenizers differ: losses per token do not compare across them.

    Args:
        summaries: The runs.
        tree: Whether to print each run below the run that it starts from.
        filtered: Whether the runs are only those that pass a filter.
    """
    console = Console()
    if not summaries:
        none = "no run passes these filters; `gptlab runs` lists all"
        console.print(none if filtered else "no runs yet; start one with: make exp NAME=tiny")
        return
    lines = _as_tree(summaries) if tree else [(summary, 0) for summary in summaries]
    width = console.rich.width
    table, dropped = fitting(_columns(lines), width)
    console.table(table)
    if dropped:
        hint = f"not shown in {width} columns: {', '.join(dropped)}; --json and a wider terminal show all"
        console.print("\n".join(textwrap.wrap(hint, width)))
    render_reasons([summary.job for summary in summaries if summary.job], console)


def _columns(lines: list[tuple[RunSummary, int]]) -> list[Column]:
    """The columns of the table. Those with a high rank are the first to go where they do not fit."""
    summaries = [summary for summary, _ in lines]
    facts = [summary.facts for summary in summaries]
    varied = list(summaries[0].varied)
    settings = [
        Column(name, [printable(summary.varied[key]) for summary in summaries], rank=1 if i < ALWAYS_VARIED else 4)
        for i, (key, name) in enumerate(zip(varied, short_names(varied), strict=True))
    ]
    verified = any(summary.verified for summary in summaries)
    bits = len({summary.tokenizer for summary in summaries}) > 1
    now = datetime.now(UTC)
    return [
        Column("run", [printable(_label(summary.facts, depth)) for summary, depth in lines]),
        *settings,
        Column("status", [status_text(each["status"]) for each in facts]),
        *([Column("slurm", [cell(summary.job) for summary in summaries])] if any(s.job for s in summaries) else []),
        Column("step", [_steps(each) for each in facts], right=True),
        Column("val loss", [_loss(each, each["val_loss"]) for each in facts], right=True),
        *([Column("bits/byte", [_loss(s.facts, s.bits_per_byte) for s in summaries], right=True)] if bits else []),
        *([Column("verified", [_verified(summary) for summary in summaries], rank=2)] if verified else []),
        Column("training loss", [bars(summary.losses) for summary in summaries], rank=5),
        Column("age", [format_age(now - summary.created) for summary in summaries], right=True, rank=3),
        Column("trained for", [_trained_for(summary) for summary in summaries], rank=6),
        Column("disk", [format_bytes(each["disk_bytes"]) for each in facts], right=True, rank=2),
    ]


def render_space(summaries: list[RunSummary]) -> None:
    """Print the disk space of the runs, and what can be freed with which command."""
    if not summaries:
        return
    console = Console()
    removable = [summary.facts["removable_bytes"] for summary in summaries]
    trash = project.runs_directory() / TRASH
    ways = (
        (sum(each["optimizer"] for each in removable), "gptlab gc --optimizer", "optimizer states of complete runs"),
        (sum(each["snapshots"] for each in removable), "gptlab gc --snapshots", "snapshots of complete runs"),
        (0 if trash.is_symlink() else disk_usage(trash), "gptlab gc", "the trash"),
    )
    total = format_bytes(sum(summary.facts["disk_bytes"] for summary in summaries))
    free = [f"{format_bytes(size):>10}  {command:<21}  {what}" for size, command, what in ways if size]
    console.print(
        f"\n{plural(len(summaries), 'run takes', 'runs take')} {total}{'; what can be freed:' if free else ''}"
    )
    for line in free:
        console.print(line)


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


def _steps(facts: dict[str, Any]) -> str:
    return f"{facts['step']}" if facts["step"] == facts["steps"] else f"{facts['step']} of {facts['steps']}"


def _verified(summary: RunSummary) -> Text:
    row = summary.verified
    if row is None:
        return Text("–")
    return Text(describe_verification(row), "" if row["verdict"] in REPRODUCED else "red")


def _trained_for(summary: RunSummary) -> str:
    return format_duration(summary.elapsed_s) if summary.elapsed_s < MAX_SHOWN else "–"


def _loss(facts: dict[str, Any], value: float | None) -> str | Text:
    return DAMAGED if "damage" in facts else _format_loss(value)


def _format_loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < MAX_SHOWN else f"{value:.4g}"
