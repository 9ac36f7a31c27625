"""Compare the metrics of two runs row by row, in one pass, because a long run has millions of rows."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from gptlab.tracking.metrics import DETERMINISTIC, Row, stream_metrics

LOSSES = ("train/loss", "val/loss", "val/bpb")
PER_BYTE = ("val/bpb",)
"""Losses that compare across tokenizers."""


@dataclass
class MetricsComparison:
    """What a pass over the rows of two runs finds. Rows of the same step are compared."""

    same_tokenizer: bool = True
    common: int = 0
    last_step: int = 0
    first_difference: tuple[int, list[str]] | None = None
    """Step and columns of the first pair of rows that differ."""
    yardsticks: set[str] = field(default_factory=set)
    last_losses: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """By column: the last step at which both have it, and both values."""

    def add(self, step: int, a: Row, b: Row) -> None:
        """Compare two rows of the same step."""
        self.common, self.last_step = self.common + 1, step
        if self.first_difference is None:
            columns = [column for column in DETERMINISTIC if a.get(column) != b.get(column)]
            self.first_difference = (step, columns) if columns else None
        for column in LOSSES if self.same_tokenizer else PER_BYTE:
            if column in a and column in b:
                self.last_losses[column] = step, a[column], b[column]

    @property
    def losses(self) -> dict[str, tuple[Any, Any]]:
        """The losses that differ at the last step at which both runs have them."""
        return {f"{column} at step {step}": (a, b) for column, (step, a, b) in self.last_losses.items() if a != b}

    def notes(self) -> list[str]:
        """Notes on whether the validation losses are comparable, and on up to which step the rows are equal."""
        if not self.common:
            return []
        notes = []
        if not self.same_tokenizer:
            notes.append(
                "the runs have different tokenizers, so their losses per token are not comparable, but bits per byte "
                "are; in training these are measured on different windows, by `gptlab eval` on the whole text"
            )
        elif len(self.yardsticks) > 1:
            notes.append("the runs were validated on different windows, so their validation losses are not comparable")
        if self.first_difference:
            step, columns = self.first_difference
            return [*notes, f"their metrics first differ at step {step}, in {', '.join(columns)}"]
        every = "the only common row" if self.common == 1 else f"all {self.common} common rows"
        return [*notes, f"their metrics are equal in {every}, up to step {self.last_step}"]


def compare_metrics(a: Path, b: Path, *, same_tokenizer: bool = True) -> MetricsComparison:
    """Compare the rows of two runs by step. Without the same tokenizer, their losses per token are left out."""
    found = MetricsComparison(same_tokenizer)
    for step, rows in _rows_by_step(a, b):
        found.yardsticks |= {row["val/yardstick"] for row in rows.values() if "val/yardstick" in row}
        if len(rows) == 2:
            found.add(step, rows["a"], rows["b"])
    return found


def _rows_by_step(a: Path, b: Path) -> Iterator[tuple[int, dict[str, Row]]]:
    """Yield each step at which a run has a row, with the newest row of that step by side."""
    rows = heapq.merge(_labelled("a", a), _labelled("b", b), key=itemgetter(0))
    for step, group in groupby(rows, key=itemgetter(0)):
        yield step, {side: row for _, side, row in group}


def _labelled(side: str, directory: Path) -> Iterator[tuple[int, str, Row]]:
    return ((row["step"], side, row) for row in stream_metrics(directory))
