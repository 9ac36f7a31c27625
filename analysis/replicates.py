"""Comparison of experiments at equal budgets, with their seeds as replicates.

The runs of an experiment (`NAME-HASH8`) differ only in their seed. `at_equal` reduces each run to one value; `summary`
and `differences` take these values.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from pandas import DataFrame, Series, isna

from analysis import stats

BATCH_SETTINGS = ("text.sha256", "data.val_fraction", "train.sequence_length", "train.batch_size")
"""Settings that, with the seed, determine the batches. Experiments that differ in one are not paired by seed."""

Difference = stats.Difference


def budget(runs: DataFrame, metrics: DataFrame, by: str = "step", column: str = "val/loss") -> float:
    """The largest value of `by` that all complete runs reached, or all other non-diverged runs if none is complete.

    NaN if no run has a value. The arguments are those of `at_equal`.
    """
    furthest = metrics.dropna(subset=[by, column]).groupby("run")[by].max().astype("float64")
    steady = runs[runs["status"] != "diverged"]
    complete = steady[steady["status"] == "complete"]
    for group in (complete, steady):
        reached = furthest.reindex(group["run"]).dropna()
        if len(reached):
            return float(reached.min())
    return math.nan


def at_equal(
    runs: DataFrame, metrics: DataFrame, by: str = "step", column: str = "val/loss", at: float | None = None
) -> DataFrame:
    """The value of each run at the same budget of steps, tokens, FLOPs or time.

    Args:
        runs: Rows of `load.runs()`.
        metrics: Their rows of `load.metrics()`.
        by: The budget's column: `step`, `tokens`, `flops` or `elapsed_s`.
        column: The column of `metrics` to compare.
        at: The budget; `budget(runs, metrics, by, column)` by default.

    Returns:
        One row per run with the columns

        run, experiment, seed: The run.
        value: The value at the budget, interpolated linearly between rows. Infinite if the run diverged before the
            budget, NaN if it is unfinished.
        yardstick: Identifies the windows that the value was measured on.
        state: `reached`, `diverged` or `unfinished`.
    """
    at = budget(runs, metrics, by, column) if at is None else at
    rows = metrics.dropna(subset=[by, column])
    groups = {str(run): group for run, group in rows.groupby("run", sort=False)}
    values = []
    for run, experiment, seed, status in runs[["run", "experiment", "seed", "status"]].itertuples(
        index=False, name=None
    ):
        value, yardstick = _value_at(groups[run], by, column, at) if run in groups else (math.nan, None)
        state = "reached" if not math.isnan(value) else "diverged" if status == "diverged" else "unfinished"
        values.append((run, experiment, seed, math.inf if state == "diverged" else value, yardstick, state))
    dtypes = {
        "run": "str",
        "experiment": "str",
        "seed": "Int64",
        "value": "float64",
        "yardstick": "str",
        "state": "str",
    }
    return DataFrame(values, columns=list(dtypes)).astype(dtypes)


def _value_at(rows: DataFrame, by: str, column: str, at: float) -> tuple[float, str | None]:
    """A run's value at a budget and its yardstick; NaN and None if the run did not reach the budget."""
    x, y = rows[by].to_numpy("float64"), rows[column].to_numpy("float64")
    after = int(np.searchsorted(x, at * (1 - 1e-9)))
    if math.isnan(at) or after == len(x):
        return math.nan, None
    yardstick = rows["val/yardstick"].iloc[after]
    if after == 0 or x[after] <= at * (1 + 1e-9):
        return float(y[after]), None if isna(yardstick) else str(yardstick)
    share = (at - x[after - 1]) / (x[after] - x[after - 1])
    return float((1 - share) * y[after - 1] + share * y[after]), None if isna(yardstick) else str(yardstick)


def summary(values: DataFrame) -> DataFrame:
    """Mean and 95% interval over the seeds of each experiment.

    Args:
        values: The result of `at_equal`.

    Returns:
        One row per experiment, by ascending mean, with the columns

        experiment: The experiment.
        seeds, diverged, unfinished: Number of seeds, of diverged seeds and of unfinished seeds.
        mean, se, low, high: The estimate (`stats.Estimate`). A diverged seed makes the mean infinite; unfinished seeds
            are excluded. NaN if there are several yardsticks.
        yardsticks: Number of different yardsticks.
    """
    rows = []
    for experiment, group in values.groupby("experiment", sort=False):
        known = group[group["state"] != "unfinished"]
        yardsticks = known["yardstick"].nunique()
        estimate = stats.estimate(known["value"] if yardsticks < 2 else [])
        counts = {state: int((group["state"] == state).sum()) for state in ("diverged", "unfinished")}
        rows.append(
            {"experiment": experiment, "seeds": len(group), **counts, **asdict(estimate), "yardsticks": yardsticks}
        )
    names = ["experiment", "seeds", "diverged", "unfinished", "mean", "se", "low", "high", "yardsticks"]
    return DataFrame(rows, columns=names).sort_values("mean", kind="stable", ignore_index=True)


def differences(runs: DataFrame, values: DataFrame, against: str) -> DataFrame:
    """The difference of each experiment from a reference experiment, with its significance.

    Args:
        runs: Rows of `load.runs()`.
        values: The result of `at_equal` for these runs.
        against: The reference (`NAME-HASH8`).

    Returns:
        One row per other experiment, by ascending difference, with the columns

        experiment: The experiment.
        how: `paired by seed`, `unpaired` or `not compared`.
        mean, se, low, high, p, n, sd, sign_flip_p: The difference (`stats.Difference`). A positive loss difference
            means that the experiment is worse than the reference.
        p_holm: `p`, corrected for the number of rows.
        seeds_needed: Number of seeds needed to detect a difference of this size (`stats.seeds_needed`).
        why: Limits of the comparison, in words; empty if there are none.
    """
    specs = runs.drop_duplicates("experiment").set_index("experiment")
    groups = {str(key): group for key, group in values.groupby("experiment", sort=False)}
    rows = [
        {"experiment": other, **_difference(specs, groups[against], groups[other])}
        for other in groups
        if other != against
    ]
    names = ["experiment", "how", *Difference.__dataclass_fields__, "p_holm", "seeds_needed", "why"]
    table = DataFrame(rows, columns=names)
    table["p_holm"] = stats.holm(table["p"].astype("float64").tolist())
    return table.sort_values("mean", kind="stable", ignore_index=True)


def _difference(specs: DataFrame, first: DataFrame, second: DataFrame) -> Mapping[str, object]:
    """The difference between two experiments' values, as a row of `differences`."""
    a, b = (group[group["state"] != "unfinished"].set_index("seed") for group in (first, second))
    reasons = _state_counts(first, second)
    yardsticks = sorted({*a["yardstick"].dropna(), *b["yardstick"].dropna()})
    if len(yardsticks) > 1:
        return {"how": "not compared", "why": f"measured on different windows ({', '.join(yardsticks)})"}
    if a.empty or b.empty:
        return {"how": "not compared", "why": "; ".join([*reasons, "no run reached the budget"])}
    shared = a.index.intersection(b.index)
    one, other = specs.loc[first["experiment"].iloc[0]], specs.loc[second["experiment"].iloc[0]]
    changed = [column for column in BATCH_SETTINGS if one[column] != other[column]]
    if changed:
        how, difference = "unpaired", stats.unpaired(a["value"], b["value"])
        reasons.append(f"different batches ({', '.join(changed)})")
    elif len(shared) < 2 <= min(len(a), len(b)):
        how, difference = "unpaired", stats.unpaired(a["value"], b["value"])
        reasons.append("too few seeds in common")
    else:
        how, difference = "paired by seed", stats.paired_by_seed(a["value"].loc[shared], b["value"].loc[shared])
        if unpaired := len(a.index.union(b.index)) - len(shared):
            reasons.append(f"{unpaired} unpaired")
    if difference.n < 2:
        reasons.append("a single seed gives no interval")
    needed = stats.seeds_needed(difference.mean, difference.sd) if math.isfinite(difference.sd) else math.nan
    return {"how": how, **asdict(difference), "seeds_needed": needed, "why": "; ".join(reasons)}


def _state_counts(*groups: DataFrame) -> list[str]:
    counted = {
        state: sum(int((group["state"] == state).sum()) for group in groups) for state in ("diverged", "unfinished")
    }
    return [f"{count} {state}" for state, count in counted.items() if count]


def window_difference(windows: DataFrame, first: str, second: str) -> Difference:
    """The mean of `second − first` over the validation windows that two runs have in common.

    It does not include the variation between seeds; see `stats.paired_over_windows`.

    Args:
        windows: Rows of `load.windows()`. The newest step of each run and yardstick is used.
        first: Id of the reference run.
        second: Id of the other run.

    Raises:
        ValueError: The runs have no windows in common.
    """
    newest = windows[windows["step"] == windows.groupby(["run", "yardstick"])["step"].transform("max")]
    a, b = (newest[newest["run"] == run].set_index(["yardstick", "start"])["loss"] for run in (first, second))
    shared = a.index.intersection(b.index)
    if shared.empty:
        raise ValueError(f"{first} and {second} were not evaluated on the same windows; run `gptlab eval` on both")
    return stats.paired_over_windows(a.loc[shared], b.loc[shared])


def steps_to_reach(metrics: DataFrame, loss: float, column: str = "val/loss", by: str = "step") -> Series:
    """The number of steps after which each run first reaches a loss, interpolated linearly between logged rows.

    Args:
        metrics: Rows of `load.metrics()`.
        loss: The target, in the unit of `column`.
        column: Column of the loss.
        by: Column to count in: `step`, `tokens`, `flops` or `elapsed_s`.

    Returns:
        The steps (or tokens, FLOPs, seconds) by run, in the order of `metrics`; NaN if a run does not reach the loss.
    """
    rows = metrics.dropna(subset=[by, column])
    reached = {
        run: _crossing(group[by].to_numpy("float64"), group[column].to_numpy("float64"), loss)
        for run, group in rows.groupby("run", sort=False)
    }
    return Series(reached, dtype="float64").reindex(metrics["run"].unique()).rename(by)


def _crossing(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """The first x at which the line through the points is at or below a level; NaN if it never is."""
    below = np.flatnonzero(y <= level)
    if not len(below):
        return math.nan
    first = int(below[0])
    if first == 0:
        return float(x[0])
    (x0, x1), (y0, y1) = x[first - 1 : first + 1], y[first - 1 : first + 1]
    return float(x0 + (x1 - x0) * (y0 - level) / (y0 - y1)) if math.isfinite(y0) else float(x1)
