"""What is known about the jobs of a submission: files in a folder of its own below `runs/.slurm/`.

runs/.slurm/20261127T181500123456-learning-rate/
    jobs.jsonl              one row per job, written when Slurm has accepted them
    12_0.jsonl              what became of job 12_0: one row per event
    12_0_0_log.out          its output until the run's directory exists, and what Slurm says about it
    12_0_1_log.out          the output of its task on the second node
    12_submission.sh, *.pkl the files of submitit
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.files import append_json_line, make_directory, write_durably
from gptlab.untrusted import Count, read_json_lines

FOLDER, JOBS = ".slurm", "jobs.jsonl"


class JobRecord(BaseModel):
    """A job as it was submitted."""

    model_config = ConfigDict(frozen=True)

    job: Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]
    """Slurm's id: `12`, or `12_0` in an array."""
    key: str
    """Equal for jobs that train the same run, whatever its id is on the node."""
    name: str
    """That of the experiment."""
    label: str
    """Settings and seed in a few words."""
    steps: Count
    sweep: str
    tags: tuple[str, ...]


class Event(BaseModel):
    """Something that happened to a job."""

    model_config = ConfigDict(frozen=True)

    event: Literal["start", "run", "requeue", "stop", "end", "final"]
    """After `stop`, Slurm decides what becomes of the job; `final` is what Slurm said about one that has no `end`."""
    time: datetime
    run: Annotated[str, Field(pattern=r"^[\w.-]+-s\d+$")] | None = None
    """The run's id."""
    step: Count | None = None
    """The step from which it is requeued."""
    exit_code: int | None = None
    state: str | None = None
    reason: str | None = None


_RECORD, _EVENT = TypeAdapter(JobRecord), TypeAdapter(Event)


@dataclass(frozen=True)
class Job:
    """A job of a submission."""

    folder: Path
    record: JobRecord

    @cached_property
    def events(self) -> list[Event]:
        """What happened to it. Empty before it starts, and if the file cannot be read."""
        return read_events(self.folder, self.record.job)

    @property
    def run(self) -> str | None:
        """The id of the run that it trains; None before the run's directory exists."""
        return next((each.run for each in reversed(self.events) if each.event == "run"), None)

    @property
    def log(self) -> Path:
        """The file with its output until the run's directory exists, and with what Slurm says about it."""
        return self.folder / f"{self.record.job}_0_log.out"

    def task_logs(self) -> list[Path]:
        """Return the logs of its tasks, one on each node. That of task 0 is `log`."""
        return task_logs(self.folder, self.record.job)

    def run_log(self) -> Path | None:
        """Return the log of the job in the run's directory; None if there is none."""
        path = project.runs_directory() / self.run / log_name(self.record.job) if self.run else None
        return path if path and path.is_file() else None


def task_logs(folder: Path, job: str) -> list[Path]:
    """Return the logs of a job's tasks in the folder of its submission."""
    return sorted(folder.glob(f"{job}_*_log.out"))


def log_name(job: str) -> str:
    """Return the name of a job's log in the run's directory."""
    return f"slurm-{job}.log"


def this_job() -> str | None:
    """Return the id of the job in which this process runs; None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def new_folder(sweep: str) -> Path:
    """Create the folder of a submission."""
    folder = project.runs_directory() / FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{sweep:.64}"
    make_directory(folder)
    return folder


def write_records(folder: Path, records: Sequence[JobRecord]) -> None:
    """Record the jobs of a submission."""
    write_durably(folder / JOBS, "".join(f"{record.model_dump_json()}\n" for record in records))


def add_event(folder: Path, job: str, event: str, **facts: Any) -> None:
    """Record that something happened to a job.

    Raises:
        GptlabError: The file is a link, which somebody else has put there.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    path = folder / f"{job}.jsonl"
    if path.is_symlink():
        raise GptlabError(f"{path} is a symbolic link; remove it")
    append_json_line(path, {"event": event, "time": time, **facts})


def read_events(folder: Path, job: str) -> list[Event]:
    """Return what happened to a job so far."""
    try:
        return list(read_json_lines(folder / f"{job}.jsonl", _EVENT))
    except (FileNotFoundError, GptlabError):
        return []


def recorded_jobs() -> list[Job]:
    """Return the jobs of all submissions, the oldest first."""
    jobs: list[Job] = []
    for path in sorted((project.runs_directory() / FOLDER).glob(f"*/{JOBS}")):
        try:
            jobs += [Job(path.parent, record) for record in read_json_lines(path, _RECORD)]
        except (OSError, GptlabError):  # removed in the meantime, or damaged: then Slurm's own commands know the jobs
            continue
    return jobs
