"""What `gptlab sweep` shows of the runs in training: a live table on a terminal, a line per event elsewhere."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.text import Text

from gptlab.commands.run_progress import progress_columns, those_that_fit
from gptlab.commands.sweep_plan import Job, SweepPlan
from gptlab.commands.sweep_processes import Child, Ended
from gptlab.commands.sweep_time import Speed, seconds_of_jobs, shape
from gptlab.commands.sweep_view import varied_columns
from gptlab.errors import EXIT_DIVERGED, GptlabError
from gptlab.terminal.console import Console
from gptlab.terminal.live import LiveDisplay
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import format_duration, plural
from gptlab.tracking.metrics import newest_values

STATUS_OF = {0: "complete", EXIT_DIVERGED: "diverged"}
REFRESH_S = 0.5
FRAME_LINES = 6
"""Lines of a terminal that the live table leaves free."""


@dataclass
class Progress:
    """A run of the sweep as the live table shows it."""

    job: Job
    threads: int
    status: str
    step: int
    loss: float | None = None
    elapsed_s: float | None = None

    def read(self) -> None:
        """Read the newest row of metrics, if there is one."""
        with suppress(GptlabError):  # it is being written, or damaged; the run's process says so
            row = newest_values(self.job.directory, ("step", "train/loss", "elapsed_s"))
            self.step = row.get("step", self.step)
            self.loss, self.elapsed_s = row.get("train/loss"), row.get("elapsed_s")

    def speed(self) -> Speed | None:
        """Return the speed of the run so far; None before its first row, and of a run that counts as a past one."""
        if self.job.is_done or not self.step or not self.elapsed_s:
            return None
        point = self.job.point
        of_shape = shape(point.experiment, point.settings.precision)
        return Speed(of_shape, point.settings.device_name(), self.threads, self.elapsed_s / self.step)

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return self.job.point.steps

    @property
    def is_open(self) -> bool:
        """Whether steps are left to do."""
        return self.status in {"waiting", "running"}


class View:
    """A context manager that shows a table of all runs on a terminal, and elsewhere a line per event."""

    def __init__(
        self, plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed], console: Console
    ) -> None:
        """Create the view.

        Args:
            plan: The sweep.
            threads: The number of threads by run.
            at_once: How many processes run at once.
            speeds: Those of earlier runs.
            console: Where to print.
        """
        self._at_once, self._speeds, self._console = at_once, speeds, console
        self._runs = {job.run_id: _before(job, threads[job.run_id]) for job in plan.jobs}
        self._display = LiveDisplay(console, REFRESH_S)

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def started(self, child: Child) -> None:
        """Show that a run is being trained."""
        progress = self._runs[child.job.run_id]
        progress.status = "running"
        verb = f"resumes from step {progress.step}" if progress.step else "starts"
        self._line(f"{child.job.run_id} {verb} · {child.job.label}")

    def ended(self, ended: Ended) -> None:
        """Show how a run ended."""
        progress = self._runs[ended.job.run_id]
        progress.read()
        progress.status = STATUS_OF.get(ended.exit_code, "interrupted" if ended.exit_code > 128 else "failed")
        closed = sum(not each.is_open for each in self._runs.values())
        loss = f" · train loss {progress.loss:.4f}" if progress.loss is not None else ""
        error = f": {ended.error}" if ended.error and ended.exit_code < 128 else ""
        self._line(f"{ended.job.run_id} {progress.status}{error}{loss} · {closed} of {plural(len(self._runs), 'run')}")

    def stopping(self, received: signal.Signals, running: Sequence[Child]) -> None:
        """Say that a signal stops the sweep."""
        self._console.notice(
            f"{received.name}: {plural(len(running), 'run')} saving, then stopping; a second Ctrl-C or SIGTERM stops "
            "immediately without saving"
        )

    def tick(self, running: Sequence[Child], waiting: Sequence[Job]) -> None:
        """Draw the table again, if it is time."""
        if self._display.is_due:
            for child in running:
                self._runs[child.job.run_id].read()
            self._display.draw(self._table())

    def _line(self, text: str) -> None:
        if not self._display.is_shown:
            self._console.print(text)

    def remaining_seconds(self) -> float | None:
        """Return how long the rest will take; None if the speed of one of the runs is unknown."""
        speeds = self._speeds + [speed for each in self._runs.values() if (speed := each.speed())]
        left = [each for each in self._runs.values() if each.is_open]
        left.sort(key=lambda each: each.status)  # running ones have begun
        return seconds_of_jobs([(each.job, each.step, each.threads) for each in left], speeds, self._at_once)

    def _table(self) -> Group:
        console, every = self._console.rich, list(self._runs.values())
        shown = those_that_fit(every, max(console.height - FRAME_LINES, 3))
        columns = [
            Column("run", [each.job.run_id for each in shown]),
            *varied_columns([each.job for each in shown]),
            *progress_columns(shown),
        ]
        remaining = self.remaining_seconds()
        eta = "unknown" if remaining is None else format_duration(remaining)
        closed = sum(not each.is_open for each in every)
        hidden = f" · {plural(len(every) - len(shown), 'run')} not shown" if len(shown) < len(every) else ""
        summary = f"{closed} of {plural(len(every), 'run')} · ETA {eta}{hidden}"
        return Group(fitting(columns, console.width)[0], Text(summary, "bold"))


def _before(job: Job, threads: int) -> Progress:
    progress = Progress(job, threads, job.status if job.is_done else "waiting", job.step)
    if job.status != "new":
        progress.read()
        progress.step = job.step
    return progress
