"""`gptlab sweep`: the runs of a sweep or of several experiments, a few processes at a time.

It is idempotent, because a run is named by what it computes: complete runs are left as they are, interrupted ones
resume, and a run that fails or diverges does not stop the others.
"""

import os
from dataclasses import dataclass

import torch

from gptlab.commands import sweep_view as view
from gptlab.commands.sweep_live import View
from gptlab.commands.sweep_plan import Job, SweepPlan
from gptlab.commands.sweep_processes import Child, run_jobs, start_process
from gptlab.commands.sweep_results import SweepResults, collect
from gptlab.commands.sweep_time import past_speeds
from gptlab.limits import THREAD_VARIABLES
from gptlab.terminal.console import Console
from gptlab.training.capacity import limit_threads


@dataclass(frozen=True)
class Options:
    """How to run a sweep, as opposed to what to compute."""

    jobs: int = 1
    """How many processes run at once."""
    device: str = "auto"
    wandb: str | None = None
    tags: tuple[str, ...] = ()
    """Tags besides that of the sweep."""

    def arguments(self, tag: str) -> list[str]:
        """Return the options of `gptlab run`."""
        tags = [word for each in (tag, *self.tags) for word in ("--tag", each)]
        return ["--device", self.device, *tags, *(["--wandb", self.wandb] if self.wandb else [])]


class DryRun:
    """What would run, and how fast past runs of the same shape were."""

    exit_code = 0

    def __init__(self, plan: SweepPlan, options: Options) -> None:
        """Read the past runs."""
        self._plan, self._jobs = plan, options.jobs
        self._threads, self._speeds = _threads(plan, options.jobs), past_speeds(plan.jobs)

    def document(self) -> dict[str, object]:
        """Return what `gptlab sweep --dry-run --json` prints."""
        return view.dry_run_document(self._plan, self._threads, self._jobs, self._speeds)

    def render(self, console: Console) -> None:
        """Print the runs with their times."""
        view.opening(self._plan, threads_per_job(self._jobs), self._jobs, console)
        view.render_dry_run(self._plan, self._threads, self._jobs, self._speeds, console)


def run_sweep(plan: SweepPlan, options: Options, console: Console) -> SweepResults:
    """Start or resume the runs of a sweep that are not complete.

    Raises:
        OSError: A process cannot be started; those that run save and end.
    """
    threads = _threads(plan, options.jobs)
    arguments = options.arguments(plan.tag)

    def start(job: Job) -> Child:
        return start_process(job, arguments, threads[job.run_id])

    left = [job for job in plan.jobs if not job.is_done]
    view.opening(plan, threads_per_job(options.jobs), options.jobs, console)
    with console.surviving(), View(plan, threads, options.jobs, past_speeds(left), console) as shown:
        ended, stopped_by = run_jobs(left, options.jobs, start, shown)
    return collect(plan, ended, stopped_by)


def threads_per_job(jobs: int) -> int:
    """Return the number of threads of a new run: an equal share of the processors, unless the environment has one."""
    limit_threads()
    threads = torch.get_num_threads()
    return threads if any(map(os.environ.get, THREAD_VARIABLES)) else max(threads // jobs, 1)


def _threads(plan: SweepPlan, jobs: int) -> dict[str, int]:
    """Return the number of threads by run. A run that has begun keeps its own, so that it stays exact."""
    new = threads_per_job(jobs)
    return {job.run_id: job.threads or new for job in plan.jobs}
