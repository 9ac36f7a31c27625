"""What a run has recorded: its attempts, its status, and values of its metrics."""

import logging
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

from gptlab.checkpoints.manifest import Checkpoint, list_checkpoints
from gptlab.digests import ALTERED
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.metrics import Row, newest_values, sample_metrics
from gptlab.tracking.records import ATTEMPT, UNRECORDED, End, Outcome, RunRecord, Start
from gptlab.tracking.verification import RecordedRows, find_damage
from gptlab.untrusted import read_json_lines

ATTEMPTS = "attempts.jsonl"

logger = logging.getLogger(__name__)

Status = Literal["running", "complete", "interrupted", "diverged", "failed"]
REPORTED = ("train/loss", "val/loss", "val/loss_se", "val/bpb", "elapsed_s", "perf/tokens_per_s")
"""Columns whose newest values the commands print."""


@cache
def warn_altered(path: Path) -> None:
    """Log once that a record no longer matches its digest."""
    logger.warning("%s has changed since it was written; what it records is not reliable", path)


def _are_complete(attempts: list[Start | End]) -> bool:
    """Whether no row is missing before the last one; a process that was killed recorded no end."""
    number = 0
    for row in attempts:
        number += row["event"] == "start"
        if row.get("attempt", number) != number:
            return False
    return True


class History:
    """What a run has recorded so far. `attempts.jsonl` is read once, so later attempts do not appear."""

    def __init__(self, directory: Path, record: RunRecord) -> None:
        """Read `attempts.jsonl`; the metrics are read when they are needed."""
        self._directory, self._record = directory, record
        self.attempts = self._read_attempts()

    @property
    def is_complete(self) -> bool:
        """Whether `attempts.jsonl` has lost no row before its last one, and no attempt that saved a checkpoint."""
        saved_by = [checkpoint.manifest.attempt or 0 for checkpoint in self._checkpoints]
        return _are_complete(self.attempts) and max(saved_by, default=0) <= len(self.starts)

    def _read_attempts(self) -> list[Start | End]:
        attempts = list(read_json_lines(self._directory / ATTEMPTS, ATTEMPT))
        if any(ALTERED in row for row in attempts) or not _are_complete(attempts):
            warn_altered(self._directory / ATTEMPTS)
        return attempts

    @property
    def starts(self) -> list[Start]:
        """The rows that record the start of an attempt; what rows of earlier versions lack has its default."""
        return [cast(Start, UNRECORDED | row) for row in self.attempts if row["event"] == "start"]

    @property
    def _end(self) -> End | None:
        """The end of the last attempt, if it has been recorded."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last["event"] == "end" else None

    @property
    def outcome(self) -> Outcome:
        """How the last attempt ended; `interrupted` if no end is recorded, as while it runs."""
        return self._end["status"] if self._end else "interrupted"

    @property
    def diverged_after(self) -> int | None:
        """The step after which the last attempt diverged; None if it did not, or if this is not recorded."""
        facts = self._end.get("diverged") if self._end else None
        step = facts.get("after_step") if isinstance(facts, dict) else None
        return step if isinstance(step, int) else None

    @cached_property
    def status(self) -> Status:
        """`running` while a process holds the run's lock, else the outcome."""
        return "running" if lock_holder(self._directory) else self.outcome

    @cached_property
    def step(self) -> int:
        """The last known step: that of the last attempt's end, else of the newest row or checkpoint."""
        if self._end:
            return self._end["step"]
        checkpoints = [checkpoint.step for checkpoint in self._checkpoints]
        newest_row: int = newest_values(self._directory, ["step"]).get("step", 0)
        return max([self._record.start_step, *checkpoints, newest_row])

    @property
    def holds_weights_only(self) -> bool:
        """Whether the run is complete and its last checkpoint has no optimizer state; see `gptlab.tracking.space`."""
        return self.outcome == "complete" and any(
            checkpoint.step == self.step and not checkpoint.resumable for checkpoint in self._checkpoints[-1:]
        )

    @property
    def target(self) -> int:
        """The total number of steps that the last attempt was asked for; before the first attempt, the spec's."""
        return self.starts[-1]["steps"] if self.starts else self._record.spec.train.steps

    @cached_property
    def damage(self) -> str | None:
        """How the metrics differ from what was written, or None."""
        recorded = self.recorded_rows()
        damage = find_damage(self._directory, recorded) if recorded else None
        if damage and (attempts := self._read_attempts()) != self.attempts:  # an attempt began or ended meanwhile
            self.attempts = attempts
            recorded = self.recorded_rows()
            damage = find_damage(self._directory, recorded) if recorded else None
        return damage

    def last(self, column: str) -> Any:
        """Return the newest value of a column of the metrics, or None. A damaged run has no values."""
        return self._newest.get(column)

    @cached_property
    def _newest(self) -> Row:
        return {} if self.damage else newest_values(self._directory, REPORTED)

    def sample_rows(self) -> list[Row]:
        """Return rows of the metrics for a plot (see `sample_metrics`); none of a damaged run.

        Raises:
            GptlabError: A row is invalid.
        """
        rows = list(sample_metrics(self._directory))
        return [] if self.damage else rows

    @cached_property
    def _checkpoints(self) -> list[Checkpoint]:
        checkpoints = list_checkpoints(self._directory)
        if any((checkpoint.manifest.attempt or 0) > len(self.starts) for checkpoint in checkpoints):
            warn_altered(self._directory / ATTEMPTS)  # it has lost the attempt that saved the checkpoint
        return checkpoints

    def recorded_rows(self) -> RecordedRows | None:
        """What the last attempt's end, or else its newest resumable checkpoint, recorded about the metrics."""
        if end := self._end:
            if "metrics_xxh3" not in end:
                return None
            size, damaged_to = end.get("metrics_bytes", 0), end.get("metrics_damaged_to")
            step = end["step"] if end["status"] == "complete" else None
            return RecordedRows(size, end["metrics_xxh3"], damaged_to, complete=True, step=step)
        for checkpoint in reversed(self._checkpoints):
            progress = checkpoint.manifest.progress
            if checkpoint.resumable and self.is_current(checkpoint) and (checksum := progress.metrics_xxh3):
                return RecordedRows(progress.metrics_bytes, checksum, progress.metrics_damaged_to, complete=False)
        return None

    def is_current(self, checkpoint: Checkpoint) -> bool:
        """Return whether the rows of metrics go on from a checkpoint's.

        The last attempt may have resumed from an older one. Then later ones of other attempts are void.
        """
        resumed_from = self.starts[-1].get("from_step", 0) if self.starts else 0
        return checkpoint.step <= resumed_from or checkpoint.manifest.attempt == len(self.starts)
