"""Line charts in a terminal: points, one character each, and lines of braille dots, eight to a character."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

HEIGHT = 12
BRAILLE = 0x2800
"""The character without dots. Each dot is one bit."""
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of the dots in the left and the right column of a character, from the top."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A series of points, drawn with one character, `mark`, or as a line."""

    mark: str
    """Empty for a line of braille dots. Of the points in one column of dots, it goes through the mean."""
    xs: Sequence[float]
    ys: Sequence[float]

    def points(self) -> list[Point]:
        """Return the finite points as (x, y)."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class _Box:
    """What the canvas shows: the ranges of x and y, and its size in characters."""

    left: float
    right: float
    bottom: float
    top: float
    columns: int
    height: int

    def cell(self, point: Point, dots_across: int = 1, dots_down: int = 1) -> tuple[int, int]:
        """The row and the column of a point, in characters or in the dots of characters."""
        x, y = point
        row = _cell(self.top - y, self.top - self.bottom, self.height * dots_down)
        return row, _cell(x - self.left, self.right - self.left, self.columns * dots_across)


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
    box = _Box(left, right, bottom, top, max(width - margin - 2, 8), height)
    canvas = [[" "] * box.columns for _ in range(height)]
    for curve in curves:
        cells = {box.cell(point): curve.mark for point in curve.points()} if curve.mark else _line(curve, box)
        for (row, column), character in cells.items():
            canvas[row][column] = character
    lines = [f"{labels.get(number, ''):>{margin}} ┤{''.join(line)}".rstrip() for number, line in enumerate(canvas)]
    ends = f"{left:,.0f}", f"{right:,.0f}"
    between = " " * max(box.columns - sum(map(len, ends)), 1)
    return [*lines, f"{'':>{margin}} └{'─' * box.columns}", f"{'':>{margin}}  {ends[0]}{between}{ends[1]}"]


def _line(curve: Curve, box: _Box) -> dict[tuple[int, int], str]:
    """The characters of a line by row and column."""
    bits: dict[tuple[int, int], int] = defaultdict(int)
    path = _means(curve.points(), box)
    for (start_row, start_column), (row, column) in pairwise([*path[:1], *path]):
        steps = max(abs(row - start_row), abs(column - start_column), 1)
        for i in range(steps + 1):
            y = start_row + round((row - start_row) * i / steps)
            x = start_column + round((column - start_column) * i / steps)
            bits[y // 4, x // 2] |= DOTS[x % 2][y % 4]
    return {cell: chr(BRAILLE + dots) for cell, dots in bits.items()}


def _means(points: Sequence[Point], box: _Box) -> list[tuple[int, int]]:
    """The dots at the mean of each column of dots, from left to right, as (row, column)."""
    of_column: dict[int, list[float]] = defaultdict(list)
    for point in points:
        of_column[box.cell(point, 2, 4)[1]].append(point[1])
    means = {column: math.fsum(y / len(ys) for y in ys) for column, ys in of_column.items()}
    return [(box.cell((box.left, mean), 2, 4)[0], column) for column, mean in sorted(means.items())]


def _cell(offset: float, span: float, cells: int) -> int:
    share = offset / span if span and math.isfinite(span) else 0.0
    return min(max(round(share * (cells - 1)), 0), cells - 1)
