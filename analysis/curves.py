"""What the report's page draws, as data for its script: curves, heat maps and the colours of experiments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pandas import DataFrame

from analysis.findings import Findings

MOST_ROWS = 200_000
"""Rows of metrics that a page holds; of more some are left out, never a validation, nor a run's last row."""

SHOWN_EXPERIMENTS = 8
"""How many of the best are drawn at first; the reader chooses others."""

STATISTICS = {
    "rms": "RMS",
    "stable_rank": "stable rank",
    "abs_max": "largest magnitude",
    "zeros": "share of zeros",
    "update": "update since the checkpoint before",
    "cosine": "cosine to the checkpoint before",
    "distance": "distance from the first checkpoint",
}


def of_runs(found: Findings) -> tuple[list[dict[str, Any]], int]:
    """Each run with its rows of metrics, in the order of the runs; and of how many rows one is kept."""
    stride = -(-len(found.metrics) // MOST_ROWS)
    shown = set(found.summary["experiment"].head(SHOWN_EXPERIMENTS))
    rank = {experiment: number for number, experiment in enumerate(found.summary["experiment"])}
    groups = {str(run): group for run, group in found.metrics.groupby("run", sort=False)}
    runs = []
    for row in found.runs.to_dict("records"):
        rows = _thinned(groups.get(row["run"]), stride)
        runs.append(
            {
                "run": row["run"],
                "experiment": found.labels[row["experiment"]],
                "colour": rank[row["experiment"]],
                "shown": row["experiment"] in shown,
                "tokensPerStep": row["train.batch_size"] * row["train.sequence_length"],
                "flopsPerToken": row["flops_per_token"],
                "step": _numbers(rows, "step", 0),
                "time": _numbers(rows, "elapsed_s", 2),
                "train": _numbers(rows, "train/loss", 5),
                "val": _numbers(rows, "val/loss", 5),
            }
        )
    return runs, stride


def of_weights(checkpoints: DataFrame, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each run with a table of matrices by steps for each statistic.

    Args:
        checkpoints: Rows of `load.checkpoints()`.
        labels: What to call each run.
    """
    matrices = checkpoints[checkpoints["shape"].str.contains("x")]
    found = []
    for run, rows in matrices.groupby("run", sort=False):
        order = rows.drop_duplicates("tensor").sort_values(["layer", "tensor"], na_position="first")["tensor"]
        tables = {
            key: rows.pivot_table(index="tensor", columns="step", values=key, aggfunc="last", dropna=False).reindex(
                order
            )
            for key in STATISTICS
        }
        found.append(
            {
                "run": labels[str(run)],
                "tensors": [str(name).removesuffix(".weight") for name in order],
                "steps": [int(step) for step in tables["rms"].columns],
                "values": {
                    key: [_rounded(row, 5) for row in table.to_numpy("float64")] for key, table in tables.items()
                },
            }
        )
    return found


def _thinned(rows: DataFrame | None, stride: int) -> DataFrame | None:
    if rows is None or stride == 1:
        return rows
    kept = (np.arange(len(rows)) % stride == 0) | rows["val/loss"].notna().to_numpy()
    kept[-1] = True
    return DataFrame(rows[kept])


def _numbers(rows: DataFrame | None, column: str, digits: int) -> list[float | None]:
    return [] if rows is None else _rounded(rows[column].to_numpy("float64", na_value=np.nan), digits)


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]], digits: int) -> list[float | None]:
    """JSON has no NaN and no infinity, and a curve has a gap there."""
    return [round(value, digits) if np.isfinite(value) else None for value in values.tolist()]
