"""The data for the report's scripts: loss curves and weight statistics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pandas import DataFrame, isna

from analysis.findings import Findings

MAX_ROWS = 200_000
"""Rows of metrics in a page. If there are more, rows are dropped, except validations and each run's last row."""

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

    With a stride of n, a curve has one row in n, all validations and the last row.
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
    return DataFrame(rows[kept])


def _numbers(rows: DataFrame | None, column: str, digits: int) -> list[float | None]:
    return [] if rows is None else _rounded(rows[column].to_numpy("float64", na_value=np.nan), digits)


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]], digits: int) -> list[float | None]:
    """The rounded values. NaN and infinity, which JSON does not have, become None: a gap in a curve."""
    return [round(value, digits) if np.isfinite(value) else None for value in values.tolist()]
