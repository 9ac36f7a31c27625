"""The optimum of a setting, estimated from runs with a few values of it."""

import math

import numpy as np
from numpy.typing import ArrayLike
from pandas import DataFrame

from analysis import stats
from analysis.choices import check_column


def vertex(settings: ArrayLike, losses: ArrayLike) -> float:
    """The minimum of the parabola over log(setting) through the lowest loss and its two neighbors.

    NaN if the lowest loss is at the smallest or largest setting (try values beyond it), or if a neighbor is not finite.

    Args:
        settings: Positive values, such as learning rates.
        losses: The loss at each of them.
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
    """The optimum with its 95% t-interval over seeds, computed from the logarithm of each seed's vertex.

    Args:
        values: One row per run with `seed`, `value` (the loss) and the column `setting`.
        setting: The positive column that was varied.

    Returns:
        The optimum in the unit of the setting; `se` is the standard error of its natural logarithm.
    """
    check_column("setting", setting, values)
    vertices = [vertex(rows[setting], rows["value"]) for _, rows in values.groupby("seed")]
    log = stats.estimate(np.log(vertices))
    mean, low, high = (math.exp(value) for value in (log.mean, log.low, log.high))
    return stats.Estimate(mean, log.se, low, high, log.n)
