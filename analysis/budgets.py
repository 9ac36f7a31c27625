"""Budgets of steps, tokens, FLOPs or time at which experiments are compared, and the value of a run at a budget."""

import math
from typing import NamedTuple

import numpy as np
from pandas import DataFrame, Series, isna

MEASURED = ("step", "tokens")
"""Budgets at which only measured values are compared. At others, a value can be interpolated between two rows."""


def common_measurement(rows: DataFrame, sizes: Series, by: str) -> float:
    """The largest value of `by` with rows of half of each experiment's runs, or of as many experiments as possible.

    Args:
        rows: The measurements, at least one, with the columns `run`, `experiment` and `by`.
        sizes: The number of runs by experiment.
        by: The budget's column.
    """
    counts = rows.groupby([by, "experiment"]).size().rename("runs").reset_index()
    counts["half"] = 2 * counts["runs"] >= counts["experiment"].map(sizes)
    coverage = counts.groupby(by)[["half", "runs"]].sum()
    coverage = coverage[coverage.index > 0] if (coverage.index > 0).any() else coverage
    key = "half" if coverage["half"].any() else "runs"
    return float(coverage.index[coverage[key] == coverage[key].max()].max())


def commonly_reached(rows: DataFrame, sizes: Series, by: str) -> float:
    """The largest value of `by` that half of each experiment's runs reached. The arguments are the same."""
    furthest = rows.groupby(["experiment", "run"])[by].max().astype("float64")
    reached = [
        sorted(group, reverse=True)[min((sizes[experiment] + 1) // 2, len(group)) - 1]
        for experiment, group in furthest.groupby(level="experiment")
    ]
    return float(min(reached))


class Value(NamedTuple):
    """A run's value at a budget; NaN if it has none."""

    value: float = math.nan
    yardstick: str | None = None
    interpolated: bool = False


def value_at(rows: DataFrame | None, by: str, column: str, at: float) -> Value:
    """A run's value at a budget.

    Args:
        rows: The run's rows of metrics that have a value, in ascending order of `by`; None if there are none.
        by: The budget's column. If it is in `MEASURED`, only a row at exactly the budget counts.
        column: The value's column.
        at: The budget.
    """
    if rows is None or math.isnan(at):
        return Value()
    x, y = rows[by].to_numpy("float64"), rows[column].to_numpy("float64")
    tolerance = 0.0 if by in MEASURED else 1e-9
    after = int(np.searchsorted(x, at * (1 - tolerance)))
    if after == len(x):
        return Value()
    yardstick, before = (None if isna(name) else str(name) for name in rows["val/yardstick"].iloc[[after, after - 1]])
    if x[after] <= at * (1 + tolerance):
        return Value(float(y[after]), yardstick)
    if by in MEASURED or after == 0 or yardstick != before:
        return Value()
    share = (at - x[after - 1]) / (x[after] - x[after - 1])
    return Value(float((1 - share) * y[after - 1] + share * y[after]), yardstick, interpolated=True)


def state_at(rows: DataFrame | None, by: str, at: float, value: float, status: str) -> str:
    """Whether a run has `reached` a budget or `diverged` before, is `unfinished`, or is past it but `unmeasured` there.

    Args:
        rows: See `value_at`.
        by: The budget's column.
        at: The budget.
        value: The run's value at the budget.
        status: The run's status.
    """
    if not math.isnan(value):
        return "reached"
    if rows is not None and rows[by].iloc[-1] >= at:
        return "unmeasured"
    return "diverged" if status == "diverged" else "unfinished"
