"""`gptlab sweep --slurm`: submit the runs of a sweep that are neither complete nor queued as one job array.

A run's id depends on the node that trains it, because precision `auto` is resolved there. So a run is known here by
what is asked for, and by the id that an earlier job has recorded.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.commands.run_progress import status_text
from gptlab.commands.sweep import Options
from gptlab.commands.sweep_plan import Job, SweepPlan
from gptlab.commands.sweep_view import varied_columns
from gptlab.digests import canonical_json
from gptlab.distributed.division import check_division
from gptlab.errors import GptlabError
from gptlab.identity import identity_fields
from gptlab.slurm.job import RunJob
from gptlab.slurm.queue import JobState, states
from gptlab.slurm.records import JobRecord, log_name, new_folder, recorded_jobs, write_records
from gptlab.slurm.settings import SlurmSettings
from gptlab.slurm.submit import check_sbatch, submit
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import plural, shell_command
from gptlab.tracking.run import load_run
from gptlab.training.plan import plan
from gptlab.training.settings import Available, resolve_settings

SUBMIT = "to submit"


@dataclass(frozen=True)
class Entry:
    """A run of the sweep, and what is known about it before submission."""

    job: Job
    key: str
    status: str
    """`to submit`, or why it is not: `complete`, `diverged`, `running` or the state of a job of Slurm."""
    run: str | None
    """The run's id, if it is known before the node resolves it."""
    slurm_job: str | None = None
    """The job that is queued or running."""

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints for the run."""
        return {
            "run": self.run,
            "name": self.job.point.experiment.name,
            "varied": self.job.point.varied,
            "seed": self.job.seed,
            "steps": self.job.point.steps,
            "status": self.status,
            "job": self.slurm_job,
        }


class Submission:
    """The runs of a sweep that are left to submit, and the array that they become."""

    exit_code = 0

    def __init__(self, plan: SweepPlan, options: Options, settings: SlurmSettings, *, shard: bool = False) -> None:
        """Find out what is complete or queued.

        Args:
            plan: The sweep, resolved for a CPU.
            options: How to run it.
            settings: What the jobs ask for.
            shard: Whether the processes of a run divide its weights and moments among them.

        Raises:
            BadInputError: There is no such device on any node, or the processes cannot train a run together.
        """
        for job in plan.jobs:
            check_division(job.point.experiment, settings.processes, shard=shard)
        resolve_settings(options.device, "float32", Available(cuda=True, mps=True, bfloat16=True))
        self.plan, self.settings = plan, settings
        self._options, self._shard = options, shard
        self.entries = _entries(plan, options.device)
        self.left = [entry for entry in self.entries if entry.status == SUBMIT]
        self.array: str | None = None
        """The id of the array; None before it is submitted."""
        self._folder: Path | None = None

    def submit(self) -> None:
        """Submit what is left.

        Raises:
            BadInputError: Slurm refuses it.
        """
        if not self.left:
            return
        check_sbatch()
        folder = new_folder(self.plan.name)
        try:
            ids = submit([self._run_job(entry, folder) for entry in self.left], self.plan.name, folder, self.settings)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # nothing was submitted
            raise
        records = [self._record(entry, job) for entry, job in zip(self.left, ids, strict=True)]
        write_records(folder, records)
        self.array, self._folder = ids[0].partition("_")[0], folder

    def _run_job(self, entry: Entry, folder: Path) -> RunJob:
        run = ["run", *entry.job.point.arguments, "--seed", str(entry.job.seed)]
        shard = ["--shard"] * self._shard
        arguments = (*run, *self._options.arguments(self.plan.tag), *shard)
        return RunJob(arguments, folder, Path.cwd(), project.runs_directory(), self.settings.processes_per_node)

    def _record(self, entry: Entry, job: str) -> JobRecord:
        return JobRecord(
            job=job,
            key=entry.key,
            name=entry.job.point.experiment.name,
            label=entry.job.label,
            steps=entry.job.point.steps,
            sweep=self.plan.name,
            tags=(self.plan.tag, *self._options.tags),
        )

    def document(self) -> dict[str, Any]:
        """Return what `gptlab sweep --slurm --json` prints."""
        return {
            "sweep": self.plan.name,
            "tag": self.plan.tag,
            "array": self.array,
            "options": self.settings.sbatch_options(),
            "runs": [entry.document() for entry in self.entries],
        }

    def render(self, console: Console) -> None:
        """Print what was submitted, or before that, what would be."""
        counts = Counter(entry.status for entry in self.entries if entry.status != SUBMIT)
        before = "".join(f", {count} {status}" for status, count in counts.items())
        console.print(f"{self.plan.name}: {plural(len(self.entries), 'run')}{before}", style="bold")
        console.fact("question", self.plan.why)
        console.fact("tag", self.plan.tag)
        console.fact("ids", "resolved on the node: precision, device and code count as they are there")
        if queued := [entry for entry in self.entries if entry.slurm_job]:
            jobs = ", ".join(f"{entry.slurm_job} {entry.status}" for entry in queued)
            console.fact("in Slurm", f"{jobs}; not submitted again")
        options = " ".join(f"--{name}={value}" for name, value in self.settings.sbatch_options().items())
        at_once = f"at most {self.settings.array_parallelism} at once" if self.settings.array_parallelism else ""
        if self.left:
            console.fact("options", " · ".join(filter(None, [options or "Slurm's defaults", at_once])))
        if self.settings.processes > 1:
            nodes = plural(self.settings.nodes or 1, "node")
            each = self.settings.processes_per_node
            console.fact("processes", f"{self.settings.processes} for each run: {each} on each of {nodes}")
        if self.array is None:
            self._render_plan(console)
        else:
            self._render_submitted(console)

    def _render_plan(self, console: Console) -> None:
        columns = [
            *varied_columns([entry.job for entry in self.entries]),
            Column("steps", [str(entry.job.point.steps) for entry in self.entries], right=True),
            Column("status", [status_text(entry.status) for entry in self.entries]),
            Column("job", [entry.slurm_job or "" for entry in self.entries]),
            Column("run", [entry.run or "" for entry in self.entries], rank=1),
        ]
        console.table(fitting(columns, console.rich.width)[0])
        console.print(f"{len(self.left)} of {plural(len(self.entries), 'run')} would be submitted")

    def _render_submitted(self, console: Console) -> None:
        jobs = self.array if len(self.left) == 1 else f"{self.array}_[0-{len(self.left) - 1}]"
        console.fact("submitted", f"{plural(len(self.left), 'run')} as job {jobs}")
        folder = project.display_path(self._folder) if self._folder else ""
        console.fact("logs", f"{log_name(f'{self.array}_N')} in each run's directory; until it exists, in {folder}")
        console.fact("watch", shell_command("runs", "--tag", self.plan.tag))
        console.fact("cancel", f"scancel {self.array}")


def _entries(plan: SweepPlan, device: str) -> list[Entry]:
    keys = [_key(job) for job in plan.jobs]
    newest = {each.record.key: each for each in recorded_jobs() if each.record.key in keys}
    known = {state.job.record.key: state for state in states(list(newest.values()))}
    return [_entry(job, key, known.get(key), device) for job, key in zip(plan.jobs, keys, strict=True)]


def _entry(job: Job, key: str, last: JobState | None, device: str) -> Entry:
    run = last.job.run if last else None
    if last and last.is_open:
        return Entry(job, key, last.word, run, last.job.record.job)
    if device == "cpu" or job.point.experiment.train.precision != "auto":  # then the id is the same everywhere
        status = job.status if job.is_done or job.status == "running" else SUBMIT
        return Entry(job, key, status, job.run_id)
    return Entry(job, key, _status_of(run, job) if run else SUBMIT, run)


def _status_of(run_id: str, job: Job) -> str:
    """Return the status of the run that the last job trained; to be submitted, unless nothing is left to do."""
    try:
        run = load_run(project.runs_directory() / run_id)
        if _hash_with(job.point.experiment, run.record.precision) != run_id.rsplit("-", 2)[1]:
            return SUBMIT  # the code has been changed since
        history = run.history()
    except GptlabError:  # it was removed, or is damaged, which the job says
        return SUBMIT
    done = history.status == "diverged" or (history.status == "complete" and history.step >= job.point.steps)
    return history.status if done or history.status == "running" else SUBMIT


@cache
def _hash_with(experiment: Experiment, precision: str) -> str:
    return plan(experiment.with_changes({"train.precision": precision}), 0, "cpu").identity.hash


def _key(job: Job) -> str:
    """Return the same text for jobs that train the same run, to any number of steps."""
    experiment = job.point.experiment
    resolved = [experiment.data.text, experiment.data.tokenizer, experiment.train.precision]
    content = [experiment.name, job.seed, resolved, identity_fields(experiment)]
    return sha256(canonical_json(content).encode()).hexdigest()
