"""Runs side by side: which is best, what differs, and whether their numbers compare at all."""

import math
from collections.abc import Sequence

import numpy as np
from pandas import DataFrame

from analysis import columns

BARS = "▁▂▃▄▅▆▇█"


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
    series = {str(run): group.to_numpy() for run, group in metrics.dropna(subset=column).groupby("run")[column]}
    with np.errstate(over="ignore", invalid="ignore"):  # a mean that is not finite is drawn as such
        courses = {run: [float(p.mean()) for p in np.array_split(v, min(width, len(v)))] for run, v in series.items()}
    finite = [value for course in courses.values() for value in course if math.isfinite(value)]
    return {run: _bars(course, min(finite, default=0.0), max(finite, default=0.0)) for run, course in courses.items()}


def _bars(values: Sequence[float], low: float, high: float) -> str:
    """One bar per value; a value that is not finite is a cross."""
    half = high / 2 - low / 2  # the whole may be more than a float holds
    heights = [(value / 2 - low / 2) / half if half else 0.0 for value in values]
    return "".join(BARS[round((len(BARS) - 1) * height)] if math.isfinite(height) else "×" for height in heights)
