"""The jobs of Slurm that `gptlab runs` shows: in the line of their run, or in a table while there is no run yet."""

from datetime import timedelta

from rich.text import Text

from gptlab import project
from gptlab.commands.run_filters import Filters
from gptlab.slurm.queue import JobState, states
from gptlab.slurm.records import Job, recorded_jobs
from gptlab.terminal.console import Console
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import one_line, printable

STYLES = {"running": "cyan", "complete": "green", "pending": "yellow", "requeued": "yellow", "unknown": "dim"}
LISTED = timedelta(days=1)
"""How long a job is listed that ended without a run."""


def newest_jobs() -> list[JobState]:
    """Return the state of the newest job of each run. Slurm is not asked if every job has a recorded end."""
    newest: dict[str, Job] = {}
    for job in recorded_jobs():
        newest.pop(job.record.key, None)  # so that it comes last
        newest[job.record.key] = job
    return states(list(newest.values()))


def jobs_of_runs(jobs: list[JobState]) -> dict[str, JobState]:
    """Return the jobs that have a run, by the run's id."""
    return {state.job.run: state for state in jobs if state.job.run}


def tells_more(state: JobState, status: str) -> bool:
    """Return whether a job says something that its run's status does not."""
    return state.is_open or (state.word != "complete" and status not in {"complete", "diverged", "running"})


def without_run(jobs: list[JobState], filters: Filters) -> list[JobState]:
    """Return the jobs that have no run yet, or ended without one not long ago, and pass the filters."""
    if filters.status or filters.where:
        return []
    return [
        state
        for state in jobs
        if state.job.run is None
        and (state.is_open or (state.word != "complete" and state.ended_within < LISTED))
        and filters.accept_name(state.job.record.name)
        and set(filters.tags) <= set(state.job.record.tags)
    ]


def cell(state: JobState | None) -> Text:
    """Return a job and its state as the cell of a table."""
    if state is None:
        return Text("")
    reason = f" ({state.reason})" if state.word in {"pending", "requeued"} and state.reason not in {"", "None"} else ""
    return Text(printable(f"{state.job.record.job} {state.word}{reason}"), STYLES.get(state.word, "red"))


def render_reasons(jobs: list[JobState], console: Console) -> None:
    """Print why jobs ended, and where their logs are."""
    for state in jobs:
        if state.reason and not state.is_open:
            log = project.display_path(state.job.run_log() or state.job.log)
            console.print(one_line(f"job {state.job.record.job} {state.word}: {state.reason}; log: {log}"), style="red")


def render_without_run(jobs: list[JobState]) -> None:
    """Print the jobs that have no run."""
    if jobs:
        console = Console()
        console.print("\njobs of Slurm without a run so far", style="bold")
        columns = [
            Column("job", [cell(state) for state in jobs]),
            Column("sweep", [printable(state.job.record.sweep) for state in jobs]),
            Column("experiment", [printable(state.job.record.name) for state in jobs], rank=1),
            Column("run", [printable(state.job.record.label) for state in jobs]),
        ]
        console.table(fitting(columns, console.rich.width)[0])
        render_reasons(jobs, console)
