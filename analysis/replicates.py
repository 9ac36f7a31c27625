"""Comparison of experiments at equal budgets, with their seeds as replicates.

The runs of an experiment (`NAME-HASH8`) differ only in their seed. `at_equal` reduces each run to one value; `summary`
and `differences` take these values.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from pandas import DataFrame, Series

from analysis import budgets, stats
from analysis.budgets import MEASURED
from analysis.choices import check_choice, check_column
from analysis.measures import comparable, measure_of
from analysis.reference import find_experiment

BUDGETS = ("step", "tokens", "flops", "elapsed_s", "cpu_s")
"""Columns of `load.metrics()` by which experiments can be compared."""

BATCH_SETTINGS = ("text.sha256", "tokenizer.sha256", "data.val_fraction", "train.sequence_length", "train.batch_size")
"""Settings that, with the seed, determine the batches. Experiments that differ in one are not paired by seed."""

KNOWN = ("reached", "diverged")
"""States of runs that have a value at the budget."""

STATES = ("diverged", "unfinished", "unmeasured", "profiled")
"""States of runs without a measured value at the budget; see `at_equal`."""

Difference = stats.Difference


def budget(runs: DataFrame, metrics: DataFrame, by: str = "step", column: str | None = None) -> float:
    """The largest budget that at least half of each experiment's runs reached.

    For steps and tokens, it is a value at which they were measured: `column` has a value in a row with exactly this
    many steps or tokens. If the experiments have no such value in common, it is the largest one of as many experiments
    as possible. Zero is chosen only if there is no other.

    Diverged and profiled runs do not count, nor do experiments without a complete run if another experiment has one.
    NaN if no run has a value. The arguments are those of `at_equal`.
    """
    column = column or measure_of(runs).column
    _check(metrics, by, column)
    counted = runs[(runs["status"] != "diverged") & ~_profiled(runs)]
    complete = counted.loc[counted["status"] == "complete", "experiment"]
    counted = counted[counted["experiment"].isin(complete)] if len(complete) else counted
    rows = metrics.dropna(subset=[by, column])[["run", by]].drop_duplicates()
    rows = rows.merge(counted[["run", "experiment"]], on="run")
    if rows.empty:
        return math.nan
    sizes = counted.groupby("experiment").size()
    return budgets.common_measurement(rows, sizes, by) if by in MEASURED else budgets.commonly_reached(rows, sizes, by)


def at_equal(
    runs: DataFrame, metrics: DataFrame, by: str = "step", column: str | None = None, at: float | None = None
) -> DataFrame:
    """The value of each run at the same budget of steps, tokens, FLOPs or time.

    Seconds depend on the machine and on what else it computed: see `caveats.seconds_caveat`.

    Args:
        runs: Rows of `load.runs()`.
        metrics: Their rows of `load.metrics()`.
        by: The budget's column: `step`, `tokens`, `flops`, `elapsed_s` or `cpu_s`.
        column: The column of `metrics` to compare; by default `val/loss`, or `val/bpb` if the tokenizers differ.
        at: The budget; `budget(runs, metrics, by, column)` by default.

    Returns:
        One row per run with the columns

        run, experiment, seed: The run.
        value: The value at the budget. At a number of steps or tokens only a measured one; at FLOPs or seconds
            interpolated linearly between two rows if there is none. Infinite if the run diverged before the budget,
            NaN if its state is not `reached` or `diverged`.
        yardstick: Identifies what the value was measured on: the windows, or, for bits per byte of different
            tokenizers, the validation text.
        state: `reached`; `diverged`; `unfinished`, before the budget; `unmeasured`, if it is past the budget but has
            no value there; `profiled`, because such a run is never a replicate.
        interpolated: Whether the value is interpolated.

    Raises:
        BadInputError: `by` or `column` is not a column of numbers; the message names the choices.
    """
    column = column or measure_of(runs).column
    _check(metrics, by, column)
    at = budget(runs, metrics, by, column) if at is None else at
    rows = metrics.dropna(subset=[by, column]).drop_duplicates(["run", by], keep="last").sort_values(by, kind="stable")
    groups = {str(run): group for run, group in rows.groupby("run", sort=False)}
    table = []
    keys = runs[["run", "experiment", "seed", "status"]].itertuples(index=False, name=None)
    for (run, experiment, seed, status), excluded in zip(keys, _profiled(runs), strict=True):
        value, yardstick, interpolated = budgets.value_at(groups.get(run), by, column, at)
        state = "profiled" if excluded else budgets.state_at(groups.get(run), by, at, value, status)
        value = math.inf if state == "diverged" else value if state == "reached" else math.nan
        table.append((run, experiment, seed, value, yardstick, state, interpolated))
    dtypes = {
        "run": "str",
        "experiment": "str",
        "seed": "Int64",
        "value": "float64",
        "yardstick": "str",
        "state": "str",
        "interpolated": "bool",
    }
    values = DataFrame(table, columns=list(dtypes)).astype(dtypes)
    return values.assign(yardstick=comparable(values["yardstick"], runs, column))


def _check(metrics: DataFrame, by: str, column: str) -> None:
    check_choice("by", by, BUDGETS)
    check_column("column", column, metrics)


def _profiled(runs: DataFrame) -> Series:
    return runs["profiled"].fillna(False).astype(bool)


def summary(values: DataFrame) -> DataFrame:
    """Mean and 95% interval over the seeds of each experiment.

    Args:
        values: The result of `at_equal`.

    Returns:
        One row per experiment, by ascending mean, with the columns

        experiment: The experiment.
        seeds, diverged, unfinished, unmeasured: Number of seeds, and of seeds with these states.
        profiled: Number of profiled runs; they are not among the seeds.
        interpolated: Number of values that are interpolated.
        mean, se, low, high, n: The estimate (`stats.Estimate`). A diverged seed makes the mean infinite; unfinished
            and unmeasured seeds are excluded. NaN if there are several yardsticks.
        yardsticks: Number of different yardsticks.
    """
    rows = []
    for experiment, group in values.groupby("experiment", sort=False):
        known = group[group["state"].isin(KNOWN)]
        yardsticks = known["yardstick"].nunique()
        estimate = stats.estimate(known["value"] if yardsticks < 2 else [])
        counts = {state: int((group["state"] == state).sum()) for state in STATES}
        rows.append(
            {
                "experiment": experiment,
                "seeds": len(group) - counts["profiled"],
                **counts,
                "interpolated": int(known["interpolated"].sum()),
                **asdict(estimate),
                "yardsticks": yardsticks,
            }
        )
    names = ["experiment", "seeds", *STATES, "interpolated", *stats.Estimate.__dataclass_fields__, "yardsticks"]
    return DataFrame(rows, columns=names).sort_values("mean", kind="stable", ignore_index=True)


def differences(runs: DataFrame, values: DataFrame, against: str) -> DataFrame:
    """The difference of each experiment from a reference experiment, with its significance.

    Args:
        runs: Rows of `load.runs()`.
        values: The result of `at_equal` for these runs.
        against: The reference: its id (`NAME-HASH8`), its label, its name if no other has it, or the id of a run.

    Returns:
        One row per other experiment, by ascending difference, with the columns

        experiment: The experiment.
        how: `paired by seed`, `unpaired` or `not compared`.
        mean, se, low, high, p, n, sd, sign_flip_p: The difference (`stats.Difference`). A positive loss difference
            means that the experiment is worse than the reference.
        p_holm: `p`, corrected for the number of rows.
        seeds_needed: Number of seeds needed to detect a difference of this size (`stats.seeds_needed`).
        why: Limits of the comparison, in words; empty if there are none.

    Raises:
        BadInputError: No experiment or several match `against`; the message names the choices.
    """
    against = find_experiment(runs, against)
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
    a, b = (group[group["state"].isin(KNOWN)].set_index("seed") for group in (first, second))
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
        if "tokenizer.sha256" in changed:
            reasons.append("different windows of the validation text, which p does not include")
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
    counted = {state: sum(int((group["state"] == state).sum()) for group in groups) for state in STATES}
    return [f"{count} {state}" for state, count in counted.items() if count]


def window_difference(windows: DataFrame, first: str, second: str) -> Difference:
    """The mean of `second − first` over the validation windows that two runs have in common.

    It does not include the variation between seeds; see `stats.paired_over_windows`.

    Args:
        windows: Rows of `load.windows()`. For each yardstick, the newest step that both runs have is used.
        first: Id of the reference run.
        second: Id of the other run.

    Raises:
        ValueError: The runs have no windows in common, or not at the same step.
    """
    a, b = (windows[windows["run"] == run] for run in (first, second))
    shared = a.merge(b, on=["yardstick", "start", "step"], suffixes=("_first", "_second"))
    if shared.empty:
        if a.merge(b, on=["yardstick", "start"]).empty:
            raise ValueError(f"{first} and {second} were not evaluated on the same windows; run `gptlab eval` on both")
        raise ValueError(
            f"{first} and {second} were not evaluated at the same step; run `gptlab eval` on both with --step"
        )
    newest = shared[shared["step"] == shared.groupby("yardstick")["step"].transform("max")]
    return stats.paired_over_windows(newest["loss_first"], newest["loss_second"])


def steps_to_reach(metrics: DataFrame, loss: float, column: str = "val/loss", by: str = "step") -> Series:
    """The number of steps after which each run first reaches a loss, interpolated linearly between logged rows.

    Args:
        metrics: Rows of `load.metrics()`.
        loss: The target, in the unit of `column`.
        column: Column of the loss.
        by: Column to count in: `step`, `tokens`, `flops`, `elapsed_s` or `cpu_s`.

    Returns:
        The steps (or tokens, FLOPs, seconds) by run, in the order of `metrics`; NaN if a run does not reach the loss,
        or if it is a branch that begins below it, so that its parent reached it.

    Raises:
        BadInputError: `by` or `column` is not a column of numbers; the message names the choices.
    """
    _check(metrics, by, column)
    rows = metrics.dropna(subset=[by, column]).drop_duplicates(["run", by], keep="last").sort_values(by, kind="stable")
    reached = {
        run: math.nan
        if group["step"].iloc[0] > 0 and group[column].iloc[0] <= loss
        else _crossing(group[by].to_numpy("float64"), group[column].to_numpy("float64"), loss)
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
    return float(x0 + (x1 - x0) * ((y0 - level) / (y0 - y1))) if math.isfinite(y0) else float(x1)
