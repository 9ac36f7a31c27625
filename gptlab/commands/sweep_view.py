"""What `gptlab sweep` prints: the plan, the progress of its runs, and their results."""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from gptlab.commands.sweep_plan import Job, SweepPlan
from gptlab.commands.sweep_processes import Child, Ended
from gptlab.commands.sweep_results import SweepResults
from gptlab.commands.sweep_time import Speed, seconds_per_step, shape, total_seconds
from gptlab.errors import EXIT_DIVERGED, GptlabError
from gptlab.terminal.console import Console
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import format_duration, plural, shell_command
from gptlab.tracking.metrics import newest_values

STYLES = {"running": "cyan", "complete": "green", "interrupted": "yellow", "diverged": "red", "failed": "red"}
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
        self._plan, self._at_once, self._speeds, self._console = plan, at_once, speeds, console
        self._runs = {job.run_id: _before(job, threads[job.run_id]) for job in plan.jobs}
        self._live = Live(console=console.rich, auto_refresh=False, transient=True) if _is_live(console) else None
        self._drawn = -REFRESH_S

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

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
        now = time.monotonic()
        if self._live and now - self._drawn >= REFRESH_S:
            self._drawn = now
            for child in running:
                self._runs[child.job.run_id].read()
            self._live.update(self._table(), refresh=True)

    def _line(self, text: str) -> None:
        if not self._live:
            self._console.print(text)

    def remaining_seconds(self) -> float | None:
        """Return how long the rest will take; None if the speed of one of the runs is unknown."""
        speeds = self._speeds + [speed for each in self._runs.values() if (speed := each.speed())]
        left = [each for each in self._runs.values() if each.is_open]
        left.sort(key=lambda each: each.status)  # running ones have begun
        return _seconds([(each.job, each.step, each.threads) for each in left], speeds, self._at_once)

    def _table(self) -> Group:
        console, every = self._console.rich, list(self._runs.values())
        shown = sorted(every, key=lambda each: each.status != "running") if len(every) > self._space else every
        shown = shown[: self._space]
        columns = [
            Column("run", [each.job.run_id for each in shown]),
            *_varied_columns([each.job for each in shown]),
            Column("status", [Text(each.status, STYLES.get(each.status, "dim")) for each in shown]),
            Column("step", [f"{each.step} of {each.job.point.steps}" for each in shown], right=True),
            Column("train loss", ["–" if each.loss is None else f"{each.loss:.4f}" for each in shown], right=True),
        ]
        remaining = self.remaining_seconds()
        eta = "unknown" if remaining is None else format_duration(remaining)
        closed = sum(not each.is_open for each in every)
        hidden = f" · {plural(len(every) - len(shown), 'run')} not shown" if len(shown) < len(every) else ""
        summary = f"{closed} of {plural(len(every), 'run')} · ETA {eta}{hidden}"
        return Group(fitting(columns, console.width)[0], Text(summary, "bold"))

    @property
    def _space(self) -> int:
        return max(self._console.rich.height - FRAME_LINES, 3)


def opening(plan: SweepPlan, threads: int, at_once: int, console: Console) -> None:
    """Print what is about to be run, and with how many threads."""
    left = [job for job in plan.jobs if not job.is_done]
    done = len(plan.jobs) - len(left)
    console.print(f"{plan.name}: {plural(len(plan.jobs), 'run')}, {done} of them done", style="bold")
    console.fact("question", plan.why)
    console.fact("jobs", f"{at_once} at once · {plural(threads, 'thread')} each; the last digits depend on the threads")
    console.fact("device", plan.points[0].settings.device_name())
    console.fact("tag", plan.tag)
    kept = [job for job in left if job.threads not in {None, threads}]
    if kept:
        console.notice(
            f"{plural(len(kept), 'run')} to resume {'keeps its' if len(kept) == 1 else 'keep their'} number of "
            f"threads: {', '.join(f'{job.run_id} {job.threads}' for job in kept)}"
        )


def dry_run_document(plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed]) -> dict[str, object]:
    """Return what `gptlab sweep --dry-run --json` prints."""
    return {
        "sweep": plan.name,
        "tag": plan.tag,
        "jobs": at_once,
        "runs": [
            {
                "run": job.run_id,
                "varied": job.point.varied,
                "seed": job.seed,
                "status": job.status,
                "step": job.step,
                "steps": job.point.steps,
                "done": job.is_done,
                "threads": threads[job.run_id],
                "seconds": _seconds([(job, job.step, threads[job.run_id])], speeds, 1),
                "command": shell_command("run", *job.point.arguments, "--seed", str(job.seed)),
            }
            for job in plan.jobs
        ],
        "seconds": _whole(plan, threads, at_once, speeds),
    }


def render_dry_run(
    plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed], console: Console
) -> None:
    """Print what would run, in which order, and how long it would take."""
    jobs = plan.jobs
    each = [_seconds([(job, job.step, threads[job.run_id])], speeds, 1) for job in jobs]
    columns = [
        Column("run", [job.run_id for job in jobs]),
        *_varied_columns(jobs),
        Column("status", [Text(job.status, STYLES.get(job.status, "dim")) for job in jobs]),
        Column("step", [f"{job.step} of {job.point.steps}" for job in jobs], right=True),
        Column("threads", ["–" if job.is_done else str(threads[job.run_id]) for job in jobs], right=True, rank=1),
        Column(
            "time", ["–" if job.is_done else _duration(time) for job, time in zip(jobs, each, strict=True)], right=True
        ),
    ]
    console.table(fitting(columns, console.rich.width)[0])
    left = sum(not job.is_done for job in jobs)
    total, used = _whole(plan, threads, at_once, speeds), plural(len(speeds), "run")
    if total is None:
        time_of_all = "how long is unknown: no past run of each shape on this device"
    else:
        time_of_all = f"about {format_duration(total)} of training, from {used} of the same shape"
    console.print(f"{left} of {plural(len(jobs), 'run')} would run, {at_once} at once; {time_of_all}")


def render(results: SweepResults, console: Console) -> None:
    """Print the mean of each point over its seeds, and each failure with its reason."""
    counts = " · ".join(f"{count} {status}" for status, count in results.counts().items())
    console.print()
    console.print(f"{results.plan.name}: {plural(len(results.results), 'run')} · {counts}", style="bold")
    points = results.of_points()
    names = list(points[0][0].cells)
    console.table(
        fitting(
            [
                *(Column(name, [point.cells[name] for point, _ in points]) for name in names),
                Column("seeds", [str(summary.n) for _, summary in points], right=True),
                Column("val loss", [_number(summary.mean) for _, summary in points], right=True),
                Column("95% interval", [_interval(summary.low, summary.high) for _, summary in points], rank=1),
                Column("note", [summary.note or "" for _, summary in points], rank=2),
            ],
            console.rich.width,
        )[0]
    )
    for failure in results.failures():
        reason = failure.seed_result.error if failure.seed_result else ""
        console.print(f"{failure.status}: {failure.job.run_id} ({failure.job.label}): {reason}", style="red")
    if results.stopped_by:
        console.fact("resume", shell_command(*sys.argv[1:]))


def _before(job: Job, threads: int) -> Progress:
    progress = Progress(job, threads, job.status if job.is_done else "waiting", job.step)
    if job.status != "new":
        progress.read()
        progress.step = job.step
    return progress


def _varied_columns(jobs: Sequence[Job]) -> list[Column]:
    names = list(jobs[0].point.cells) if jobs else []
    return [
        *(Column(name, [job.point.cells[name] for job in jobs]) for name in names),
        Column("seed", [str(job.seed) for job in jobs], right=True),
    ]


def _whole(plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed]) -> float | None:
    left = [(job, job.step, threads[job.run_id]) for job in plan.jobs if not job.is_done]
    return _seconds(left, speeds, at_once)


def _seconds(jobs: list[tuple[Job, int, int]], speeds: list[Speed], at_once: int) -> float | None:
    """Return how long jobs take that have done some steps with some threads; None if that is unknown."""
    durations = []
    for job, step, threads in jobs:
        per_step = seconds_per_step(job, threads, speeds)
        if per_step is None:
            return None
        durations.append(per_step * max(job.point.steps - step, 0))
    return total_seconds(durations, at_once)


def _is_live(console: Console) -> bool:
    return console.rich.is_terminal


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_duration(seconds)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"
