"""The data for the report's scripts: loss curves, their differences, and weight statistics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pandas import DataFrame, isna

from analysis import stats
from analysis.findings import Findings
from analysis.replicates import KNOWN

Values = np.ndarray[Any, np.dtype[np.float64]]

MAX_ROWS = 200_000
"""Rows of metrics in a page. If there are more, adjacent rows without a validation are merged."""

MAX_DIFFERENCES = 100
"""Maximum number of steps in a curve of differences. If there are more, they are spread evenly."""

INITIALLY_DRAWN = 8
"""Number of experiments that are drawn when the page opens: the best ones."""

STATISTICS = {
    "rms": "RMS",
    "stable_rank": "stable rank",
    "abs_max": "largest magnitude",
    "zeros": "fraction of zeros",
    "update": "distance to the previous checkpoint",
    "cosine": "cosine to the previous checkpoint",
    "distance": "distance to the first checkpoint",
}
"""Columns of `load.checkpoints()` in the page, with their labels."""


def run_curves(findings: Findings) -> tuple[list[dict[str, Any]], int]:
    """Return one curve per run, in the order of `findings.runs`, and the stride of their rows.

    With a stride of n, a curve has one row in n, all validations and the last row. Their training losses are means over
    all rows since the last one.
    """
    stride = -(-len(findings.metrics) // MAX_ROWS)
    reached = set(findings.values.loc[findings.values["state"] == "reached", "run"])
    rank = {experiment: number for number, experiment in enumerate(findings.summary["experiment"])}
    groups = {str(run): group for run, group in findings.metrics.groupby("run", sort=False)}
    curves = []
    for run in findings.runs.to_dict("records"):
        rows = _thinned(groups.get(run["run"]), stride)
        curves.append(
            {
                "run": run["run"],
                "experiment": findings.labels[run["experiment"]],
                "color": rank[run["experiment"]],
                "compared": run["run"] in reached,
                "drawn": rank[run["experiment"]] < INITIALLY_DRAWN,
                "startStep": 0 if isna(run["branch"]) else run["parent_step"],
                "startTokens": run["branch_tokens"],
                "startFlops": run["branch_flops"],
                "tokensPerStep": run["train.batch_size"] * run["train.sequence_length"],
                "flopsPerToken": run["flops_per_token"],
                "step": _numbers(rows, "step", 0),
                "time": _numbers(rows, "elapsed_s", 2),
                "train": _numbers(rows, "train/loss", 5),
                "val": _numbers(rows, findings.measure.column, 5),
            }
        )
    return curves, stride


def difference_curves(findings: Findings) -> list[dict[str, Any]]:
    """Return, for each experiment that is compared with the reference, their difference over the steps.

    The runs and the kind of comparison are those of `findings.differences`. Each curve has the steps at which all of
    these runs were measured, on the same windows as at the budget. There is no interval for a single seed.
    """
    table = _measurements(findings)
    known = findings.values[findings.values["state"].isin(KNOWN)].set_index("seed")
    runs = {str(key): group["run"] for key, group in known.groupby("experiment")}
    rank = {str(experiment): number for number, experiment in enumerate(findings.summary["experiment"])}
    curves = []
    for experiment, how in findings.differences["how"].items():
        if how == "not compared":
            continue
        first, second = runs[findings.reference], runs[str(experiment)]
        if how == "paired by seed":
            shared = first.index.intersection(second.index)
            first, second = first.loc[shared], second.loc[shared]
        measured = table.reindex(columns=[*first, *second]).dropna()
        steps = _spread(len(measured), MAX_DIFFERENCES)
        rows = measured.to_numpy("float64")[steps]
        difference = _paired if how == "paired by seed" else stats.unpaired
        points = [difference(row[: len(first)], row[len(first) :]) for row in rows]
        mean, low, high = np.array([(point.mean, point.low, point.high) for point in points]).reshape(-1, 3).T
        curves.append(
            {
                "experiment": findings.labels[str(experiment)],
                "color": rank[str(experiment)],
                "how": how,
                "seeds": min(len(first), len(second)),
                "step": measured.index[steps].tolist(),
                "mean": _rounded(mean, 5),
                "low": _rounded(low, 5),
                "high": _rounded(high, 5),
            }
        )
    return curves


def _measurements(findings: Findings) -> DataFrame:
    """The measure of each run (column) at each step (row), of rows with the windows that the run has at the budget."""
    rows = findings.metrics.dropna(subset=["step", findings.measure.column])
    rows = rows.drop_duplicates(["run", "step"], keep="last").sort_values("step", kind="stable")
    compared = rows[rows["step"] <= findings.budget]
    own = rows["run"].map(compared.groupby("run")["val/yardstick"].last())
    rows = rows[(rows["val/yardstick"] == own) | own.isna()]
    return rows.pivot(index="step", columns="run", values=findings.measure.column).sort_index()


def _paired(first: Values, second: Values) -> stats.Estimate:
    """As `stats.paired_by_seed`, without tests, which would take seconds for many steps and seeds."""
    with np.errstate(invalid="ignore"):  # inf − inf
        return stats.estimate(second - first)


def _spread(count: int, maximum: int) -> list[int]:
    """Indices of at most `maximum` of `count` rows, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, maximum))})


def weight_tables(checkpoints: DataFrame, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return, for each run and statistic, a table with one row per matrix and one column per checkpoint.

    Args:
        checkpoints: Rows of `load.checkpoints()`.
        labels: The label of each run.
    """
    matrices = checkpoints[checkpoints["shape"].str.contains("x")]
    runs = []
    for run, rows in matrices.groupby("run", sort=False):
        order = rows.drop_duplicates("tensor").sort_values(["layer", "tensor"], na_position="first")["tensor"]
        tables = {
            key: rows.pivot_table(index="tensor", columns="step", values=key, aggfunc="last", dropna=False).reindex(
                order
            )
            for key in STATISTICS
        }
        runs.append(
            {
                "run": labels[str(run)],
                "tensors": [str(name).removesuffix(".weight") for name in order],
                "steps": [int(step) for step in tables["rms"].columns],
                "values": {
                    key: [_rounded(row, 5) for row in table.to_numpy("float64")] for key, table in tables.items()
                },
            }
        )
    return runs


def _thinned(rows: DataFrame | None, stride: int) -> DataFrame | None:
    if rows is None or stride == 1:
        return rows
    kept = (np.arange(len(rows)) % stride == 0) | rows["val/loss"].notna().to_numpy()
    kept[-1] = True
    means = rows["train/loss"].groupby(kept[::-1].cumsum()[::-1]).transform("mean")
    return DataFrame(rows.assign(**{"train/loss": means})[kept])


def _numbers(rows: DataFrame | None, column: str, digits: int) -> list[float | None]:
    return [] if rows is None else _rounded(rows[column].to_numpy("float64", na_value=np.nan), digits)


def _rounded(values: Values, digits: int) -> list[float | None]:
    """The rounded values. NaN and infinity, which JSON does not have, become None: a gap in a curve."""
    return [round(value, digits) if np.isfinite(value) else None for value in values.tolist()]
