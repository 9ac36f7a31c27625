"""Compare the rows of a run with those of its replay, in one pass, because a long run has millions of rows."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from gptlab.tracking.metrics import DETERMINISTIC, Row, stream_metrics
from gptlab.verification.result import ValueDifference
from gptlab.verification.stretch import Stretch

MULTIPLE = 8
"""The bound in units of what one other rounding per step changed."""
FLOOR = 8 * 2.0**-23
"""The least bound, relative to the value: eight units in the last place of float32, in which losses are computed."""
FLOOR64 = 4 * 2.0**-52
"""The bound of a value that Python computes in float64, such as a learning rate from a cosine."""

EXACT = ("step", "tokens", "epoch", "val/yardstick")
"""Columns without rounding."""
ON_HOST = ("optim/lr",)
"""Columns that training does not feed back into."""
FRACTIONS = ("optim/clip_frac",)
"""Columns that count steps whose gradient norm is above a threshold; rounding can move a step across it."""


@dataclass
class RowComparison:
    """What a pass over the rows finds."""

    rows: int = 0
    """Rows of the run."""
    first: ValueDifference | None = None
    largest: ValueDifference | None = None
    first_beyond: ValueDifference | None = None
    """The first difference that exceeds its bound."""

    def add(self, found: ValueDifference) -> None:
        """Add a difference. Those of a step come in the order of the columns."""
        self.first = self.first or found
        if self.largest is None or (found.excess, found.difference) > (self.largest.excess, self.largest.difference):
            self.largest = found
        if self.first_beyond is None and found.excess > 1:
            self.first_beyond = found


def compare_rows(stretch: Stretch, run: Path, replayed: Path, rounded: Path | None = None) -> RowComparison:
    """Compare the reproducible columns of the rows in a stretch.

    Args:
        stretch: The stretch.
        run: The run's directory.
        replayed: The replay's.
        rounded: That of the replay with other rounding, from which the bounds come. Without it, bounds are zero.

    Raises:
        GptlabError: A row is invalid.
    """
    found, sensitivity = RowComparison(), _Sensitivity()
    before = stretch.first
    for step, (recorded, ours, other) in _aligned(stretch, [run, replayed, *([rounded] if rounded else [])]):
        found.rows += recorded is not None
        if recorded is None or ours is None:
            found.add(ValueDifference(step, "step", recorded and step, ours and step, math.inf))
            continue
        if other is not None:
            sensitivity.add(ours, other)
        for difference in _differences(step, recorded, ours):
            bound = sensitivity.bound(difference, step - before) if rounded else 0.0
            found.add(replace(difference, bound=bound))
        before = step
    return found


class _Sensitivity:
    """The largest difference by column that other rounding has produced so far."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}

    def add(self, ours: Row, other: Row) -> None:
        for column in DETERMINISTIC:
            if isinstance(ours.get(column), float) and isinstance(other.get(column), float):
                self._largest[column] = max(self._largest.get(column, 0.0), abs(ours[column] - other[column]))

    def bound(self, found: ValueDifference, steps: int) -> float:
        """Return the largest difference that rounding explains. `steps` are those that the row is a mean of."""
        column, value = found.column, found.replayed
        if column in EXACT or not isinstance(value, float):
            return 0.0
        if column in ON_HOST:
            return FLOOR64 * abs(value)
        bound = MULTIPLE * self._largest.get(column, 0.0) + FLOOR * abs(value)
        return bound + (1 / steps if column in FRACTIONS and steps else 0.0)


def _differences(step: int, recorded: Row, ours: Row) -> Iterator[ValueDifference]:
    for column in DETERMINISTIC:
        a, b = recorded.get(column), ours.get(column)
        if a != b or type(a) is not type(b):
            yield ValueDifference(step, column, a, b, _distance(a, b))


def _distance(a: Any, b: Any) -> float:
    """The absolute difference; infinite unless both are finite floats."""
    numbers = isinstance(a, float) and isinstance(b, float) and math.isfinite(a) and math.isfinite(b)
    return abs(a - b) if numbers else math.inf


def _aligned(stretch: Stretch, directories: Sequence[Path]) -> Iterator[tuple[int, tuple[Row | None, ...]]]:
    """Yield each step in the stretch that a directory has a row of, with the row of each of three sides or None."""
    streams = [_rows(side, directory, stretch) for side, directory in enumerate(directories)]
    for step, group in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        rows: list[list[Row]] = [[], [], []]
        for _, side, row in group:
            rows[side].append(row)
        yield step, tuple(_united(each, may_be_two=step == stretch.last) for each in rows)


def _united(rows: Sequence[Row], *, may_be_two: bool) -> Row | None:
    """Return the reproducible values of a step's rows, which are one; None without rows.

    A run that was interrupted at its last step and then ended there has two rows of it, which do not contradict each
    other. Other values of several rows become a tuple, so that they differ from those of a replay.
    """
    if not rows:
        return None
    united: Row = {}
    for column in DETERMINISTIC:
        values = [row[column] for row in rows if column in row]
        distinct = {repr(value) for value in values}
        if values:
            united[column] = values[-1] if len(distinct) == 1 else tuple(values)
    if len(rows) > 1 + may_be_two:
        united["step"] = tuple(row["step"] for row in rows)
    return united


def _rows(side: int, directory: Path, stretch: Stretch) -> Iterator[tuple[int, int, Row]]:
    return ((row["step"], side, row) for row in stream_metrics(directory) if stretch.has_row(row["step"]))
