"""Line charts in a terminal, one character per point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HEIGHT = 12


@dataclass(frozen=True)
class Curve:
    """A series of points, drawn with one character, `mark`."""

    mark: str
    xs: Sequence[float]
    ys: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """Return the finite points as (x, y)."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


def chart(curves: Sequence[Curve], width: int, height: int = HEIGHT) -> list[str]:
    """Return the chart as lines of text, with axes; an empty list for fewer than two distinct points.

    Args:
        curves: Later curves are drawn over earlier ones. Non-finite points are skipped.
        width: Columns, including the vertical axis.
        height: Lines, excluding the horizontal axis.
    """
    points = [point for curve in curves for point in curve.points()]
    if len(set(points)) < 2:
        return []
    (left, right), (bottom, top) = ((min(values), max(values)) for values in zip(*points, strict=True))
    labels = {0: f"{top:.4g}", height - 1: f"{bottom:.4g}"}
    margin = max(map(len, labels.values()))
    columns = max(width - margin - 2, 8)
    canvas = [[" "] * columns for _ in range(height)]
    for curve in curves:
        for x, y in curve.points():
            row, column = _cell(top - y, top - bottom, height), _cell(x - left, right - left, columns)
            canvas[row][column] = curve.mark
    lines = [f"{labels.get(number, ''):>{margin}} ┤{''.join(line)}".rstrip() for number, line in enumerate(canvas)]
    ends = f"{left:,.0f}", f"{right:,.0f}"
    between = " " * max(columns - sum(map(len, ends)), 1)
    return [*lines, f"{'':>{margin}} └{'─' * columns}", f"{'':>{margin}}  {ends[0]}{between}{ends[1]}"]


def _cell(offset: float, span: float, cells: int) -> int:
    share = offset / span if span and math.isfinite(span) else 0.0
    return min(max(round(share * (cells - 1)), 0), cells - 1)
