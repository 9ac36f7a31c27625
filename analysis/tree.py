"""The runs that start from other runs, as a tree."""

from typing import Any

from pandas import DataFrame, isna

from analysis import formatting
from analysis.measures import measure_of
from gptlab.tracking.lineage import in_tree_order

MAX_INDENT = 8
"""Runs that are deeper in the tree are not indented further."""


def tree_table(runs: DataFrame) -> DataFrame:
    """One row per run that has a parent or is one, each below its parent; empty if no run has a parent.

    Args:
        runs: Rows of `load.runs()`.
    """
    measure = measure_of(runs)
    records = {row["run"]: row for row in runs.to_dict("records")}
    parents = {run: None if isna(row["parent"]) else str(row["parent"]) for run, row in records.items()}
    with_children = set(parents.values())
    shown = {run: parent for run, parent in parents.items() if parent or run in with_children}
    rows = []
    for run, depth in in_tree_order(shown):
        row = records[run]
        rows.append(
            {
                "run": f"└{'─' * (min(depth, MAX_INDENT) - 1)} {run}" if depth else run,
                "starts from": starts_from(row["parent"], row["parent_step"], row["branch"]),
                "status": row["status"],
                "step": str(row["step"]),
                "tokens": formatting.count(row["tokens"]),
                measure.short: formatting.loss(row[measure.column]),
            }
        )
    return DataFrame(rows, dtype="str")


def starts_from(parent: Any, step: Any, branch: Any) -> str:
    """What a run starts from, in words."""
    if isna(parent):
        return "initialization"
    return f"{'weights' if isna(branch) else 'weights and moments'} of {parent} at step {step}"
