"""Quantiles of Student's t-distribution, without SciPy, which training does not need."""

import math
from functools import cache

CONFIDENCE = 0.95


@cache
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that a variable with Student's t-distribution is in [−t, t] with this probability, by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, df) < confidence else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _central_probability(angle: float, df: int) -> float:
    """P(|T| ≤ √df · tan(angle)), in closed form for a whole number of degrees of freedom.

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    is_odd = df % 2
    cosine, series = math.cos(angle), 0.0
    term = cosine**is_odd
    for k in range(is_odd, df - 1, 2):
        series += term
        term *= cosine**2 * (k + 1) / (k + 2)
    total = math.sin(angle) * series
    return (angle + total) * 2 / math.pi if is_odd else total
