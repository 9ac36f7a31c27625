"""A series of numbers as a line of bars, for terminals and Markdown."""

import math
from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"


def resample(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` averages of neighboring values; NaN where one of them is not finite."""
    if len(values) <= width:
        return list(values)
    cuts = [round(i * len(values) / width) for i in range(width + 1)]
    return [
        math.fsum(v / (end - start) for v in values[start:end])
        if all(map(math.isfinite, values[start:end]))
        else math.nan
        for start, end in pairwise(cuts)
    ]


def bars(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """Return one bar per value; `×` for a value that is not finite.

    Args:
        values: The values to draw.
        low: Value of the lowest bar; the smallest value by default.
        high: Value of the highest bar; the largest value by default.
    """
    finite = [value for value in values if math.isfinite(value)]
    bottom = min(finite, default=0.0) if low is None else low
    top = max(finite, default=0.0) if high is None else high
    half = top / 2 - bottom / 2  # top - bottom can overflow
    heights = [(value / 2 - bottom / 2) / half if half else value - bottom for value in values]
    return "".join(BARS[round((len(BARS) - 1) * height)] if math.isfinite(height) else "×" for height in heights)
