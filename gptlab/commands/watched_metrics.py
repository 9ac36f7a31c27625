"""The rows of a run that may be in training: each call reads only what was written since the last one."""

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from gptlab.errors import GptlabError
from gptlab.tracking.history import REPORTED
from gptlab.tracking.metrics import METRICS, SAMPLE_BYTES, NewRows, Row, newest_values, sample_metrics
from gptlab.untrusted import complete_bytes, open_regular

MAX_POINTS = 5_000
"""A curve with more points loses every other one. No terminal has so many columns."""
RATE_S = 60.0
"""The speed is that of the last rows within so many seconds."""
MIN_RATE_ROWS = 3

Points = list[tuple[int, float]]


class WatchedMetrics:
    """The curves, the newest values and the speed of a run."""

    def __init__(self, directory: Path) -> None:
        """Start without rows; `read` reads them."""
        self._directory = directory
        self.forget()

    def forget(self) -> None:
        """Read all rows again at the next call of `read`, as after the start of an attempt, which drops rows."""
        self._rows: NewRows | None = None
        self.train: Points = []
        """Training losses as (step, loss)."""
        self.val: Points = []
        """Validation losses as (step, loss)."""
        self.newest: Row = {}
        """The newest value of each column."""
        self.problem: str | None = None
        """Why rows cannot be read; None if they can."""
        self._recent: deque[tuple[float, int]] = deque()  # (time, step) of the current attempt
        self._attempt: int | None = None

    def read(self) -> None:
        """Read the new rows. A torn last line is left for the next call; an invalid one is described by `problem`."""
        if self.problem:
            return
        try:
            self._read_new()
        except GptlabError:  # rows were dropped and others written, so that the new ones begin within a line
            self.forget()
            try:
                self._read_new()
            except GptlabError as error:
                self.problem = str(error)

    def _read_new(self) -> None:
        size = self._size()
        if self._rows and size < self._rows.position:
            self.forget()
        if self._rows is None:
            self._rows = self._first_rows(size)
        if size > self._rows.position:
            self._add(self._rows)

    def _size(self) -> int:
        try:
            return (self._directory / METRICS).lstat().st_size
        except OSError:  # not written yet, or the run is gone
            return 0

    def _first_rows(self, size: int) -> NewRows:
        """Those of a long file are a sample, and all that follow it."""
        if size <= SAMPLE_BYTES:
            return NewRows(self._directory)
        with open_regular(self._directory / METRICS) as file:
            start = complete_bytes(file)
        self._add(sample_metrics(self._directory))
        self.newest |= newest_values(self._directory, REPORTED)
        return NewRows(self._directory, start)

    def _add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            step = row["step"]
            if step <= self.newest.get("step", -1):  # a sample ends after the start of the rows that follow it
                continue
            self.newest |= row
            for column, points in (("train/loss", self.train), ("val/loss", self.val)):
                if column in row:
                    points.append((step, row[column]))
            self._add_recent(row)
        for points in (self.train, self.val):
            if len(points) > MAX_POINTS:
                points[:] = points[::2]

    def _add_recent(self, row: Row) -> None:
        if row.get("attempt") != self._attempt:
            self._attempt = row.get("attempt")
            self._recent.clear()
        if "time" in row:
            self._recent.append((row["time"], row["step"]))
            while len(self._recent) > MIN_RATE_ROWS and self._recent[1][0] < row["time"] - RATE_S:
                self._recent.popleft()

    def seconds_per_step(self) -> float | None:
        """Return how long a step takes now, with evaluation and saving; None if two rows do not tell."""
        if len(self._recent) < 2:
            return None
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (end - start) / (last - first) if end > start else None

    @property
    def row_interval_s(self) -> float | None:
        """Mean time between the last rows."""
        if len(self._recent) < 2:
            return None
        return (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None if there is none."""
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
