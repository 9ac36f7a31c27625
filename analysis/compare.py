"""Runs side by side: which is best, what differs, and whether their numbers compare at all."""

import math
from typing import Any

import numpy as np
from pandas import DataFrame, isna

from analysis import columns
from gptlab import sparkline


def ranked(runs: DataFrame) -> DataFrame:
    """Rows of `load.runs()`, the lowest validation loss first; runs without one come last."""
    return runs.sort_values("val/loss", kind="stable", na_position="last", ignore_index=True)


def what_differs(runs: DataFrame) -> list[str]:
    """The columns of `load.runs()` that change what is computed and are not the same in all of these runs.

    Where the texts differ, `text.source` comes along: people know a text by its name.
    """
    differing = [column for column in columns.IDENTITY if runs[column].nunique(dropna=False) > 1]
    return [*differing, *(["text.source"] if "text.sha256" in differing else [])]


def comparison(runs: DataFrame) -> DataFrame:
    """The ranked runs with where they stand, their newest numbers, and only those spec columns in which they differ."""
    numbers = ["train/loss", "val/loss", "val/loss_se", "val/bpb", "perf/tokens_per_s"]
    yardstick = ["val/yardstick"] if caution(runs) else []
    return ranked(runs)[["run", "status", "step", "steps", *numbers, *yardstick, *what_differs(runs)]]


def caution(runs: DataFrame) -> str | None:
    """Why the validation losses of these runs do not compare, in words; None where they do."""
    groups = {str(key): list(group["run"]) for key, group in runs.dropna(subset="val/loss").groupby("val/yardstick")}
    if len(groups) < 2:
        return None
    listed = "; ".join(f"{yardstick}: {', '.join(members)}" for yardstick, members in groups.items())
    return (
        f"These runs were validated on {len(groups)} different sets of windows, so their validation losses do not "
        f"compare; only those with the same yardstick do ({listed})."
    )


def at_steps(metrics: DataFrame, column: str, count: int = 6) -> DataFrame:
    """A column of `load.metrics()` at a handful of steps.

    Args:
        metrics: Rows of `load.metrics()`.
        column: Such as `val/loss`.
        count: How many steps at most, evenly spread over those at which any run has a value; the first and last are in.

    Returns:
        One row per run in the order of `metrics`, one column per step; NaN where a run has no row at that step.
    """
    rows = metrics.dropna(subset=column).drop_duplicates(["run", "step"], keep="last")  # a run may have been copied
    steps = sorted(rows["step"].unique())
    chosen = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, count)})] if steps else []
    return rows.pivot(index="run", columns="step", values=column).reindex(index=rows["run"].unique(), columns=chosen)


def sparklines(metrics: DataFrame, column: str, width: int = 24) -> dict[str, str]:
    """The course of a column as a line of bars per run, all on one scale from the lowest to the highest value.

    Args:
        metrics: Rows of `load.metrics()`.
        column: Such as `train/loss`.
        width: Bars at most; more rows than that are averaged.
    """
    series = {str(run): group.tolist() for run, group in metrics.dropna(subset=column).groupby("run")[column]}
    courses = {run: sparkline.shortened(values, width) for run, values in series.items()}
    finite = [value for course in courses.values() for value in course if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return {run: sparkline.bars(course, low, high) for run, course in courses.items()}


def labels(runs: DataFrame) -> dict[str, str]:
    """What to call each experiment among these: its name, with what differs from others of that name.

    Returns:
        By `NAME-HASH8`, such as `tiny` or `tiny learning_rate=0.003`; the id where no column tells them apart.
    """
    found = {}
    for name, group in runs.groupby("name", sort=False):
        differing = what_differs(group)
        for experiment, row in group.drop_duplicates("experiment").set_index("experiment").iterrows():
            settings = [f"{column.rpartition('.')[2]}={setting(row[column])}" for column in differing]
            found[str(experiment)] = " ".join([str(name), *settings])
    taken = list(found.values())
    return {key: label if taken.count(label) == 1 else key for key, label in found.items()}


def setting(value: Any) -> str:
    """A spec's value as people write it, a hash by its first digits."""
    text = "–" if value is None or isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text
