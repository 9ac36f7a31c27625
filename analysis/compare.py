"""Comparison of runs: their ranking, the settings that differ, and whether their losses are comparable."""

import math

import numpy as np
from pandas import DataFrame

from analysis import columns, formatting
from analysis.choices import check_column
from analysis.measures import measure_of
from gptlab.terminal import sparkline


def ranked(runs: DataFrame) -> DataFrame:
    """Rows of `load.runs()` by ascending validation loss (see `measures.measure_of`); runs without one come last."""
    return runs.sort_values(measure_of(runs).column, kind="stable", na_position="last", ignore_index=True)


def differing_columns(runs: DataFrame) -> list[str]:
    """The columns in `columns.IDENTITY` that differ between these runs.

    For those in `columns.NAMES`, the more readable columns are included as well.
    """
    differing = [column for column in columns.IDENTITY if runs[column].nunique(dropna=False) > 1]
    return [*differing, *(columns.NAMES[column] for column in differing if column in columns.NAMES)]


def comparison(runs: DataFrame) -> DataFrame:
    """The ranked runs with their progress, their newest losses and the settings that differ."""
    numbers = ["train/loss", "val/loss", "val/loss_se", "val/bpb", "perf/tokens_per_s"]
    yardstick = ["val/yardstick"] if yardstick_caveat(runs) else []
    return ranked(runs)[["run", "status", "step", "steps", *numbers, *yardstick, *differing_columns(runs)]]


def yardstick_caveat(runs: DataFrame) -> str | None:
    """A caveat if these runs have several yardsticks, so that their validation losses are not comparable."""
    groups = {str(key): list(group["run"]) for key, group in runs.dropna(subset="val/loss").groupby("val/yardstick")}
    if len(groups) < 2:
        return None
    listed = "; ".join(f"{yardstick}: {', '.join(members)}" for yardstick, members in groups.items())
    return (
        f"These runs were validated on {len(groups)} different sets of windows. Validation losses with different "
        f"yardsticks are not comparable ({listed})."
    )


def at_steps(metrics: DataFrame, column: str, count: int = 6) -> DataFrame:
    """A column of `load.metrics()` at a few steps.

    Args:
        metrics: Rows of `load.metrics()`.
        column: The column, such as `val/loss`.
        count: Maximum number of steps. They are spread evenly over the steps at which any run has a value and include
            the first and the last.

    Returns:
        One row per run in the order of `metrics`, one column per step; NaN where a run has no row at that step.

    Raises:
        BadInputError: `column` is not a column of numbers; the message names the choices.
    """
    check_column("column", column, metrics)
    rows = metrics.dropna(subset=column).drop_duplicates(["run", "step"], keep="last")  # duplicates of a copied run
    steps = sorted(rows["step"].unique())
    chosen = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, count)})] if steps else []
    return rows.pivot(index="run", columns="step", values=column).reindex(index=rows["run"].unique(), columns=chosen)


def sparklines(metrics: DataFrame, column: str, width: int = 24) -> dict[str, str]:
    """A sparkline of a column for each run, all on one scale from the lowest to the highest value.

    Args:
        metrics: Rows of `load.metrics()`.
        column: The column, such as `train/loss`.
        width: Maximum number of bars; longer series are averaged.

    Raises:
        BadInputError: `column` is not a column of numbers; the message names the choices.
    """
    check_column("column", column, metrics)
    series = {str(run): group.tolist() for run, group in metrics.dropna(subset=column).groupby("run")[column]}
    shortened = {run: sparkline.resample(values, width) for run, values in series.items()}
    finite = [value for values in shortened.values() for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return {run: sparkline.bars(values, low, high) for run, values in shortened.items()}


def labels(runs: DataFrame) -> dict[str, str]:
    """A label for each experiment: its name, and the settings that differ from others of the same name.

    Returns:
        Labels such as `tiny`, `tiny learning_rate=0.003` or `tiny branch=@200` by experiment (`NAME-HASH8`).
        Experiments that differ only in the arithmetic of their code have its hash, such as `tiny arithmetic=1a2b3c4d`.
        An experiment whose label would still not be unique is labeled with its id.
    """
    labeled = {}
    for name, group in runs.groupby("name", sort=False):
        differing = differing_columns(group)
        group = _with_short_branches(group)
        for experiment, values in group.drop_duplicates("experiment").set_index("experiment").iterrows():
            settings = [f"{column.rpartition('.')[2]}={formatting.setting(values[column])}" for column in differing]
            labeled[str(experiment)] = " ".join([str(name), *settings])
    fingerprints = (
        runs.dropna(subset="fingerprint").drop_duplicates("experiment").set_index("experiment")["fingerprint"]
    )
    taken = list(labeled.values())
    for key in [key for key, label in labeled.items() if taken.count(label) > 1 and key in fingerprints]:
        labeled[key] += f" arithmetic={fingerprints[key][:8]}"
    taken = list(labeled.values())
    return {key: label if taken.count(label) == 1 else key for key, label in labeled.items()}


def _with_short_branches(runs: DataFrame) -> DataFrame:
    """The runs with branches named by their step alone, as `@200`, if all of them have the same parent."""
    if "branch" not in runs or runs["branch"].str.rpartition("@")[0].nunique() != 1:
        return runs
    return runs.assign(branch=runs["branch"].str.replace(r"^.*(?=@)", "", regex=True))
