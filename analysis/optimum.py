"""Where a loss is lowest over a setting that was tried at a few values, and how sure that is."""

import math

import numpy as np
from numpy.typing import ArrayLike
from pandas import DataFrame

from analysis import stats


def vertex(settings: ArrayLike, losses: ArrayLike) -> float:
    """The setting at which the parabola through the lowest loss and its two neighbours is lowest, over log(setting).

    NaN where the lowest loss has no neighbour on one side (try further values there), or one that is not finite.
    """
    x, y = np.log(np.asarray(settings, np.float64)), np.asarray(losses, np.float64)
    order = np.argsort(x)
    x, y = x[order], y[order]
    lowest = int(np.argmin(np.where(np.isnan(y), np.inf, y))) if len(y) else 0
    if not 0 < lowest < len(y) - 1 or not np.isfinite(y[lowest - 1 : lowest + 2]).all():
        return math.nan
    curvature, slope, _ = np.polyfit(x[lowest - 1 : lowest + 2] - x[lowest], y[lowest - 1 : lowest + 2], 2)
    return math.exp(x[lowest] - slope / (2 * curvature)) if curvature > 0 else math.nan


def over_seeds(values: DataFrame, setting: str = "train.learning_rate") -> stats.Estimate:
    """The optimum with its 95% interval: each seed has a vertex of its own, and their logarithms are the replicates.

    `se` is that of the natural logarithm.

    Args:
        values: One row per run with `seed`, `value` (the loss) and the column `setting`.
        setting: The column that was varied, above zero.
    """
    vertices = [vertex(rows[setting], rows["value"]) for _, rows in values.groupby("seed")]
    about = stats.estimate(np.log(vertices))
    mean, low, high = (math.exp(value) for value in (about.mean, about.low, about.high))
    return stats.Estimate(mean, about.se, low, high, about.n)
