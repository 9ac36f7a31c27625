"""A run as `gptlab watch` sees it: read from its directory, again and again, without changing anything there."""

import time
from typing import Any, Literal

from gptlab.commands.watched_metrics import Points, WatchedMetrics, state_of
from gptlab.errors import GptlabError
from gptlab.terminal.text import format_duration, printable, shell_command
from gptlab.tracking.history import ATTEMPTS, Status
from gptlab.tracking.lock import Holder, lock_holder
from gptlab.tracking.records import Sample
from gptlab.tracking.run import RECORD, SAMPLES, Run

SILENT_S = 30.0
SILENT_ROWS = 5
"""A run is silent if it has written no row for so many seconds, and for so many times the time between two rows."""
MAX_SHOWN_S = 1e9
"""Longer times are not shown: an untrusted run may record any number."""


class WatchedRun:
    """A run and what it has recorded so far. `read` brings this up to date."""

    def __init__(self, run: Run) -> None:
        """Read the run for the first time.

        Raises:
            GptlabError: It cannot be read.
        """
        self.run = run
        self.name = printable(run.directory.absolute().name)
        self.history = run.history()
        self.metrics = WatchedMetrics(run.directory)
        self.holder: Holder | None = None
        """The process that trains the run."""
        self.removed = False
        self.step = 0
        """The last step that is known."""
        self.steps = self.history.target
        """The total number of steps."""
        self.problem: str | None = None
        """Why it cannot be read any more, or why its losses are not shown."""
        self.sample: Sample | None = None
        """The newest generated text."""
        self._attempts = state_of(run.directory / ATTEMPTS)
        self._samples: object = None
        self._read()

    def read(self) -> None:
        """Read what has changed since the last call. If that fails, `problem` says why."""
        try:
            self._read()
        except (GptlabError, OSError) as error:  # such as a directory that is being deleted
            self.problem = str(error)

    def _read(self) -> None:
        directory = self.run.directory
        self.holder = lock_holder(directory)  # before the attempts, so that the end of one is not overlooked
        self.removed = state_of(directory / RECORD) is None
        if self.removed:  # what was read stays
            return
        if (attempts := state_of(directory / ATTEMPTS)) != self._attempts:
            self.history, self._attempts = self.run.history(), attempts
            self.metrics.forget()  # a new attempt drops rows
        self.metrics.read()
        if (samples := state_of(directory / SAMPLES)) != self._samples:
            written = self.run.samples()
            self.sample, self._samples = written[-1] if written else None, samples
        self.steps = self.history.target
        self.step = self._newest_step() if self.holder else self.history.step
        self.problem = self.metrics.problem or (None if self.holder else self.history.damage)

    def _newest_step(self) -> int:
        begun = self.history.starts[-1].get("from_step", 0) if self.history.starts else self.run.record.start_step
        return max(begun, int(self.metrics.newest.get("step", 0)))

    @property
    def status(self) -> Status | Literal["removed"]:
        """How the run is doing, or how it ended."""
        return "removed" if self.removed else "running" if self.holder else self.history.outcome

    @property
    def is_open(self) -> bool:
        """Whether the run is in training."""
        return self.status == "running"

    @property
    def train(self) -> Points:
        """Training losses as (step, loss); none of a damaged run."""
        return [] if self.problem else self.metrics.train

    @property
    def val(self) -> Points:
        """Validation losses as (step, loss); none of a damaged run."""
        return [] if self.problem else self.metrics.val

    @property
    def loss(self) -> float | None:
        """The newest training loss."""
        return self._newest("train/loss")

    @property
    def val_loss(self) -> float | None:
        """The newest validation loss."""
        return self._newest("val/loss")

    @property
    def val_loss_se(self) -> float | None:
        """Its standard error."""
        return self._newest("val/loss_se")

    @property
    def tokens_per_s(self) -> float | None:
        """The speed of training since the last row but one."""
        return self._newest("perf/tokens_per_s")

    def _newest(self, column: str) -> float | None:
        value: float | None = self.metrics.newest.get(column)
        return None if self.problem else value

    def eta_s(self, now: float) -> float | None:
        """Return how many seconds a run in training will still take; None if that is unknown."""
        per_step = self.metrics.seconds_per_step()
        if not self.is_open or per_step is None:
            return None
        eta_s = max((self.steps - self.step) * per_step - self._silence_s(now), 0.0)
        return eta_s if eta_s < MAX_SHOWN_S else None

    def is_silent(self, now: float) -> bool:
        """Return whether a run in training has written no row for unusually long."""
        usual = self.metrics.row_interval_s
        return self.is_open and usual is not None and self._silence_s(now) > max(SILENT_S, SILENT_ROWS * usual)

    def _silence_s(self, now: float) -> float:
        """Seconds since the last row; 0 if the clock of the other machine is ahead."""
        return float(max(now - self.metrics.newest.get("time", now), 0.0))

    def note(self, now: float) -> str | None:
        """Return what else there is to know, as one phrase."""
        if self.removed:
            return "its directory is gone"
        if self.is_open:
            if self.is_silent(now):
                return f"no row for {format_duration(self._silence_s(now))}"
            return f"process {self.holder.pid} on {self.holder.host}" if self.holder and self.holder.pid else None
        last = self.history.attempts[-1] if self.history.attempts else None
        if last is None or last["event"] == "start":
            return f"its process was killed; resume: {self._resume()}" if last else None
        if last["status"] == "interrupted":
            return f"resume: {self._resume()}"
        if last["status"] == "diverged":
            return _describe_divergence(last.get("diverged"))
        elapsed_s = self._newest("elapsed_s")
        if elapsed_s is None or not elapsed_s < MAX_SHOWN_S:
            return None
        return f"{format_duration(elapsed_s)} of training"

    def _resume(self) -> str:
        return shell_command("resume", self.run.reference)

    def document(self, now: float | None = None) -> dict[str, Any]:
        """Return what `gptlab watch --json` prints."""
        now = time.time() if now is None else now
        return {
            "run": self.run.id,
            "name": self.run.record.spec.name,
            "seed": self.run.record.seed,
            "status": self.status,
            "step": self.step,
            "steps": self.steps,
            "train_loss": self.loss,
            "val_loss": self.val_loss,
            "val_loss_se": self.val_loss_se,
            "val_step": self.val[-1][0] if self.val else None,
            "tokens_per_s": self.tokens_per_s,
            "eta_s": self.eta_s(now),
            "elapsed_s": self._newest("elapsed_s"),
            "sample": self.sample,
            "note": self.problem or self.note(now),
            "directory": str(self.run.directory),
        }


def _describe_divergence(facts: Any) -> str | None:
    """What the end of a diverged attempt recorded; its values may be anything, because the run may be untrusted."""
    if not isinstance(facts, dict):
        return None
    loss, step = facts.get("loss", facts.get("val_loss")), facts.get("after_step")
    return f"the loss is {loss!s:.20} after step {step!s:.20}"
