"""Experiments against each other, their seeds taken as replicates: at equal budgets, with intervals, in words.

An experiment is what has one `NAME-HASH8`; its runs differ in their seeds. `at_equal` gives each run one number, and
the other functions go on from there.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from pandas import DataFrame, Series, isna

from analysis import stats

ORDER = ("text.sha256", "data.val_fraction", "train.sequence_length", "train.batch_size")
"""What decides, beside the seed, which windows a step trains on."""

Difference = stats.Difference


def budget(runs: DataFrame, metrics: DataFrame, by: str = "step", column: str = "val/loss") -> float:
    """The most of `by` that every complete run has a value at; of the others if none is complete; NaN without any."""
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
    """One value per run where all have had the same.

    Args:
        runs: Rows of `load.runs()`.
        metrics: Their rows of `load.metrics()`.
        by: What is equal: `step`, `tokens`, `flops` or `elapsed_s`.
        column: The column to compare.
        at: How much of it; `budget(…)` where None.

    Returns:
        One row per run: `run`, `experiment`, `seed`, `value` at the budget, by linear interpolation where no row stands
        there, `yardstick`, and `state`: `reached`; `diverged` before it got there, with an infinite value; or
        `unfinished`, without one.
    """
    at = budget(runs, metrics, by, column) if at is None else at
    rows = metrics.dropna(subset=[by, column])
    groups = {str(run): group for run, group in rows.groupby("run", sort=False)}
    found = []
    for run, experiment, seed, status in runs[["run", "experiment", "seed", "status"]].itertuples(
        index=False, name=None
    ):
        value, yardstick = _value_at(groups[run], by, column, at) if run in groups else (math.nan, None)
        state = "reached" if not math.isnan(value) else "diverged" if status == "diverged" else "unfinished"
        found.append((run, experiment, seed, math.inf if state == "diverged" else value, yardstick, state))
    dtypes = {
        "run": "str",
        "experiment": "str",
        "seed": "Int64",
        "value": "float64",
        "yardstick": "str",
        "state": "str",
    }
    return DataFrame(found, columns=list(dtypes)).astype(dtypes)


def _value_at(rows: DataFrame, by: str, column: str, at: float) -> tuple[float, str | None]:
    """A run's value at a budget and what it was measured on; NaN where it did not get there."""
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
    """Mean and interval over the seeds of each experiment, the lowest mean first.

    Args:
        values: As `at_equal` gives them.

    Returns:
        One row per experiment: `experiment`; `seeds`, how many it has; `diverged` and `unfinished`, how many of them;
        `mean`, `se`, `low` and `high` as in `stats.Estimate`. A diverged seed makes the mean infinite; an unfinished
        one is not in it. `yardsticks`: on how many its values were measured; with more than one there is no mean.
    """
    rows = []
    for experiment, group in values.groupby("experiment", sort=False):
        known = group[group["state"] != "unfinished"]
        yardsticks = known["yardstick"].nunique()
        about = stats.estimate(known["value"] if yardsticks < 2 else [])
        counts = {state: int((group["state"] == state).sum()) for state in ("diverged", "unfinished")}
        rows.append(
            {"experiment": experiment, "seeds": len(group), **counts, **asdict(about), "yardsticks": yardsticks}
        )
    names = ["experiment", "seeds", "diverged", "unfinished", "mean", "se", "low", "high", "yardsticks"]
    return DataFrame(rows, columns=names).sort_values("mean", kind="stable", ignore_index=True)


def differences(runs: DataFrame, values: DataFrame, against: str) -> DataFrame:
    """Each experiment's difference to one of them, and whether it is real.

    Args:
        runs: Rows of `load.runs()`.
        values: As `at_equal` gives them for these runs.
        against: The `NAME-HASH8` that the others are compared with.

    Returns:
        One row per other experiment: `experiment`; `how`: `paired by seed`, `unpaired` or `not compared`; the fields of
        `stats.Difference` (positive where it is worse than `against`); `p_holm`, corrected for the number of rows;
        `seeds_needed` to see a difference of this size; and `why`, in words, what keeps it from being more certain.
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
    a, b = (group[group["state"] != "unfinished"].set_index("seed") for group in (first, second))
    reasons = _reasons(first, second)
    yardsticks = sorted({*a["yardstick"].dropna(), *b["yardstick"].dropna()})
    if len(yardsticks) > 1:
        return {"how": "not compared", "why": f"measured on different windows ({', '.join(yardsticks)})"}
    if a.empty or b.empty:
        return {"how": "not compared", "why": "; ".join([*reasons, "no run got there"])}
    shared = a.index.intersection(b.index)
    one, other = specs.loc[first["experiment"].iloc[0]], specs.loc[second["experiment"].iloc[0]]
    moved = [column for column in ORDER if one[column] != other[column]]
    if moved:
        how, about = "unpaired", stats.unpaired(a["value"], b["value"])
        reasons.append(f"other batches ({', '.join(moved)})")
    elif len(shared) < 2 <= min(len(a), len(b)):
        how, about = "unpaired", stats.unpaired(a["value"], b["value"])
        reasons.append("too few seeds in common")
    else:
        how, about = "paired by seed", stats.paired_by_seed(a["value"].loc[shared], b["value"].loc[shared])
        if alone := len(a.index.union(b.index)) - len(shared):
            reasons.append(f"{alone} without a partner")
    if about.n < 2:
        reasons.append("one seed has no interval")
    needed = stats.seeds_needed(about.mean, about.sd) if math.isfinite(about.sd) else math.nan
    return {"how": how, **asdict(about), "seeds_needed": needed, "why": "; ".join(reasons)}


def _reasons(*groups: DataFrame) -> list[str]:
    counted = {
        state: sum(int((group["state"] == state).sum()) for group in groups) for state in ("diverged", "unfinished")
    }
    return [f"{count} {state}" for state, count in counted.items() if count]


def window_difference(windows: DataFrame, first: str, second: str) -> Difference:
    """The difference of two single runs over the validation windows that both were judged on.

    This is a difference over windows, not over seeds; see `stats.paired_over_windows`.

    Args:
        windows: Rows of `load.windows()`; of each run's evaluations the one of its newest step counts.
        first: The run that is compared with.
        second: The other run.

    Raises:
        ValueError: They have no evaluation on the same yardstick.
    """
    newest = windows[windows["step"] == windows.groupby(["run", "yardstick"])["step"].transform("max")]
    a, b = (newest[newest["run"] == run].set_index(["yardstick", "start"])["loss"] for run in (first, second))
    shared = a.index.intersection(b.index)
    if shared.empty:
        raise ValueError(f"{first} and {second} were not judged on the same windows; run `gptlab eval` on both")
    return stats.paired_over_windows(a.loc[shared], b.loc[shared])


def steps_to_reach(metrics: DataFrame, loss: float, column: str = "val/loss", by: str = "step") -> Series:
    """Where each run first gets down to a loss, by linear interpolation between its logged rows.

    Args:
        metrics: Rows of `load.metrics()`.
        loss: In the unit of `column`.
        column: Which loss.
        by: In which unit to count: `step`, `tokens`, `flops` or `elapsed_s`.

    Returns:
        By run, in the order of `metrics`; NaN where a run never gets there.
    """
    rows = metrics.dropna(subset=[by, column])
    found = {
        run: _crossing(group[by].to_numpy("float64"), group[column].to_numpy("float64"), loss)
        for run, group in rows.groupby("run", sort=False)
    }
    return Series(found, dtype="float64").reindex(metrics["run"].unique()).rename(by)


def _crossing(x: np.ndarray, y: np.ndarray, level: float) -> float:
    below = np.flatnonzero(y <= level)
    if not len(below):
        return math.nan
    first = int(below[0])
    if first == 0:
        return float(x[0])
    (x0, x1), (y0, y1) = x[first - 1 : first + 1], y[first - 1 : first + 1]
    return float(x0 + (x1 - x0) * (y0 - level) / (y0 - y1)) if math.isfinite(y0) else float(x1)
