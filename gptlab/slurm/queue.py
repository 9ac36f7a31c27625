"""The state of jobs: what Slurm says, else what they recorded themselves.

A cluster without accounting forgets a job some minutes after its end. So what Slurm says about an ended job is kept.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gptlab.errors import GptlabError
from gptlab.slurm.records import Job, add_event
from gptlab.untrusted import open_regular

PATIENCE_S = 3
"""How long to wait for Slurm: an unreachable controller must not hold up a command that only lists runs."""
MAX_LOG_BYTES = 16_384
"""Bytes at the end of a log to search for the reason of a failure."""
FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "RestartCnt")
ENDED = {
    "COMPLETED": "complete",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "REVOKED": "cancelled",
}
"""Slurm's states of jobs that have ended, and the words for them. All others are those of open jobs."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
OPEN = frozenset({"pending", "requeued", "running", "suspended", "unknown"})
OUT_OF_MEMORY = re.compile(r"exceeded (?:job |step )?memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
ERROR = re.compile(r"^(?:[\w.-]+: )?error: (?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What Slurm says about a job."""

    state: str
    """Such as `PENDING` or `OUT_OF_MEMORY`."""
    reason: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class JobState:
    """A job and what became of it."""

    job: Job
    word: str
    """Such as `pending`, `running`, `requeued`, `complete`, `failed`, `out of memory`, or `gone`."""
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the job is queued or running, or may be."""
        return self.word in OPEN

    @property
    def ended_within(self) -> timedelta:
        """How long ago the last event was; zero if there was none."""
        events = self.job.events
        return datetime.now(UTC) - events[-1].time if events else timedelta(0)

    def document(self) -> dict[str, str]:
        """Return what `--json` prints."""
        return {"job": self.job.record.job, "state": self.word, "reason": self.reason}


def states(jobs: Sequence[Job]) -> list[JobState]:
    """Return the state of each job. Slurm is only asked if one of them has no recorded end."""
    undecided = [job for job in jobs if not _recorded_end(job)]
    answers = ask_squeue(_arrays(undecided)) if undecided else None
    unknown = [job for job in undecided if answers is not None and job.record.job not in answers]
    past = ask_sacct(_arrays(unknown)) if unknown else {}
    return [_state(job, answers, past) for job in jobs]


def ask_squeue(arrays: Sequence[str]) -> dict[str, Answer] | None:
    """Ask Slurm for jobs that are queued, running or just ended; None if it does not answer."""
    form = ",".join(f"{field}:|" for field in FIELDS)
    output = _ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(arrays)}", f"--Format={form}")
    if output is None:
        return None
    rows = [line.strip().split("|") for line in output.splitlines()]
    return {
        array if task == "N/A" else f"{array}_{task}": Answer(state, reason, int(restarts) if restarts.isdigit() else 0)
        for array, task, state, reason, restarts, *_ in (row for row in rows if len(row) > len(FIELDS))
    }


def ask_sacct(arrays: Sequence[str]) -> dict[str, Answer]:
    """Ask Slurm's accounting, if there is one, for jobs that ended some time ago."""
    output = _ask("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(arrays)}", "-oJobID,State")
    rows = [line.split("|") for line in (output or "").splitlines()]
    return {row[0]: Answer(row[1].split()[0]) for row in rows if len(row) > 1 and row[1]}  # `CANCELLED by 1000`


def _ask(*command: str) -> str | None:
    """Return the output of a command of Slurm; None if there is no such command, or it fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "Invalid job id" in done.stderr:  # none of the jobs is known any more
        return ""
    return done.stdout if done.returncode == 0 else None


def _arrays(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(job.record.job.partition("_")[0] for job in jobs))


def _recorded_end(job: Job) -> bool:
    return bool(job.events) and job.events[-1].event in {"end", "final"}


def _state(job: Job, answers: dict[str, Answer] | None, past: dict[str, Answer]) -> JobState:
    answer = (answers or {}).get(job.record.job) or past.get(job.record.job)
    if answer:
        return _said_by_slurm(job, answer)
    if _recorded_end(job):
        return _said_by_job(job)
    if answers is None:
        return JobState(job, "unknown", "squeue does not answer")
    return _kept(JobState(job, "gone", _own_reason(job) or _last_error(job) or "Slurm does not know it any more"))


def _said_by_slurm(job: Job, answer: Answer) -> JobState:
    word = ENDED.get(answer.state)
    if word is None:
        if answer.state in WAITING:
            return JobState(job, "requeued" if answer.restarts else "pending", answer.reason)
        return JobState(job, "suspended" if answer.state == "SUSPENDED" else "running")
    if _recorded_end(job) and word in {"complete", "failed"}:
        return _said_by_job(job)
    error = _last_error(job) if word in {"failed", "out of memory"} else ""
    if OUT_OF_MEMORY.search(error):  # not every cluster says so in the state
        return _kept(JobState(job, "out of memory", error))
    return _kept(JobState(job, word, _own_reason(job) or error or ("" if answer.reason == "None" else answer.reason)))


def _said_by_job(job: Job) -> JobState:
    last = job.events[-1]
    if last.event == "final":
        return JobState(job, last.state or "gone", last.reason or "")
    return JobState(job, "complete" if last.exit_code == 0 else "failed", last.reason or "")


def _own_reason(job: Job) -> str:
    """Return what the job itself said about its end; empty if it was killed."""
    last = next((event for event in reversed(job.events) if event.event != "final"), None)
    return (last.reason or "") if last else ""


def _kept(state: JobState) -> JobState:
    """Record what Slurm said about an ended job, because Slurm forgets it."""
    job, last = state.job, state.job.events[-1:]
    if [(each.event, each.state, each.reason) for each in last] != [("final", state.word, state.reason)]:
        with suppress(OSError, GptlabError):  # it is somebody else's folder; then it is only shown
            add_event(job.folder, job.record.job, "final", state=state.word, reason=state.reason)
    return state


def _last_error(job: Job) -> str:
    """Return why Slurm or the run's process ended a job: what says most about memory, else the last error."""
    logs = [path for path in (*job.task_logs(), job.run_log()) if path]
    errors = [text for path in logs for text in errors_in(path)]
    about_memory = [text for text in errors if OUT_OF_MEMORY.search(text)]
    return max(about_memory, key=len) if about_memory else (errors or [""])[-1]


def errors_in(log: Path) -> Iterator[str]:
    """Yield the errors at the end of a log."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LOG_BYTES))
            text = file.read(MAX_LOG_BYTES).decode(errors="replace")
    except (OSError, GptlabError):
        return
    for match in ERROR.finditer(text):
        yield " ".join(match["text"].split())
