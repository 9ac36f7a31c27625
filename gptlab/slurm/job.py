"""The job on the node: it trains one run in a process of its own, and is requeued when Slurm wants the node back.

Slurm sends its signals to all processes of a job. So the run's process saves and ends by itself, and this one decides
what becomes of the job.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gptlab.distributed.nodes import Nodes
from gptlab.errors import GptlabError
from gptlab.limits import THREAD_VARIABLES
from gptlab.slurm.queue import errors_in
from gptlab.slurm.records import add_event, log_name, read_events, this_job
from gptlab.tracking.run import Run, load_run
from gptlab.training.signals import StopSignals

FOLDER_VARIABLE = "GPTLAB_SLURM_FOLDER"
"""Where the run's process records its id."""
FIRST_PORT, PORTS = 15_000, 15_000
"""Where the processes of several nodes find each other: a port that follows from the id of the job."""
MAX_REQUEUES = 5
"""Requeues without a step in between; more mean that the time limit does not suffice to start."""


class _Signals(StopSignals):
    """The first signal is remembered; a second one does not end this process, which must still requeue the job."""

    def insist(self, number: int) -> None:
        """Ignore a second signal: the run's process answers it."""


@dataclass(frozen=True)
class RunJob:
    """The function that submitit calls on the node."""

    arguments: tuple[str, ...]
    """Those of `gptlab`."""
    folder: Path
    """That of the submission."""
    working_directory: Path
    runs: Path
    processes: int = 1
    """Number of processes on each node."""

    def command(self) -> list[str]:
        """Return the command that trains the run."""
        several = ["--nproc", str(self.processes)] if self.processes > 1 else []
        return [sys.executable, "-m", "gptlab", *self.arguments, *several]

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: the processes of a new run share the processors of the node."""
        given = {"GPTLAB_RUNS": str(self.runs), FOLDER_VARIABLE: str(self.folder)}
        processors = int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
        if processors and not any(map(os.environ.get, THREAD_VARIABLES)):
            given |= dict.fromkeys(THREAD_VARIABLES, str(max(processors // self.processes, 1)))
        several = _nodes()
        return {**os.environ, **given, **(several.environment() if several else {})}

    def __call__(self) -> None:
        """Train the run. The exit code of the job is that of the run's process."""
        job = this_job() or ""
        with _Signals() as signals:
            if int(os.environ.get("SLURM_PROCID", "0")):  # node 0 decides what becomes of the job
                sys.exit(_exit_code(self._train()))
            self._record(job, "start")
            code = self._train()
            if code == -signal.SIGKILL:
                self._stop(job, code, "SIGKILL ended the run's process, probably for its memory")
            if code == 0 or signals.received is None or 0 < code < 128:
                self._end(job, code)
            if not _wants_the_node_back(signals.received):
                self._stop(job, code, f"{signals.received.name}: saved and stopped")
            if self._is_stuck(job):
                self._end(job, code, f"no step in {MAX_REQUEUES} attempts: the time limit does not suffice to start")
            self._requeue(job, code)

    def _train(self) -> int:
        return subprocess.Popen(self.command(), cwd=self.working_directory, env=self.environment()).wait()

    def _requeue(self, job: str, code: int) -> NoReturn:
        self._record(job, "requeue", step=self._step(job))
        done = subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], capture_output=True, text=True)
        if done.returncode:
            self._end(job, code, f"saved, but it cannot be requeued: {' '.join(done.stderr.split())}")
        sys.exit(_exit_code(code))

    def _is_stuck(self, job: str) -> bool:
        steps = [each.step for each in read_events(self.folder, job) if each.event == "requeue"][-MAX_REQUEUES:]
        return len(steps) == MAX_REQUEUES and {*steps} == {self._step(job)}

    def _step(self, job: str) -> int | None:
        run = next((each.run for each in reversed(read_events(self.folder, job)) if each.run), None)
        with suppress(GptlabError):  # it is damaged; the next attempt says so
            return load_run(self.runs / run).history().step if run else None
        return None

    def _stop(self, job: str, code: int, reason: str) -> NoReturn:
        """Leave it to Slurm what becomes of the job: cancelled, requeued by hand, out of memory."""
        self._record(job, "stop", exit_code=_exit_code(code), reason=reason)
        sys.exit(_exit_code(code))

    def _end(self, job: str, code: int, reason: str | None = None) -> NoReturn:
        """Record the end of the job, and exit with the code of the run's process, without a traceback of submitit."""
        if code and reason is None:
            reason = self._reason(job) or f"exit code {_exit_code(code)}"
        self._record(job, "end", exit_code=_exit_code(code), reason=reason)
        sys.exit(_exit_code(code))

    def _record(self, job: str, event: str, **facts: Any) -> None:
        with suppress(OSError, GptlabError):  # the disk is full: the job goes on, and Slurm knows its state
            add_event(self.folder, job, event, **facts)

    def _reason(self, job: str) -> str:
        run = next((each.run for each in reversed(read_events(self.folder, job)) if each.run), None)
        logs = [self.folder / f"{job}_0_log.out", *([self.runs / run / log_name(job)] if run else [])]
        return ([text for log in logs for text in errors_in(log)] or [""])[-1]


def announce(run: Run) -> None:
    """In a job, record which run this process trains, and write its output to the run's directory from now on."""
    job, folder = this_job(), os.environ.get(FOLDER_VARIABLE)
    if not (job and folder):
        return
    add_event(Path(folder), job, "run", run=run.id)
    path = run.directory / log_name(job)
    sys.stdout.write(f"the log continues in {path}\n")
    sys.stdout.flush()
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _wants_the_node_back(received: signal.Signals) -> bool:
    """Whether Slurm pre-empts this job or its time is over, rather than somebody cancels or requeues it."""
    command = ["scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    facts = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if facts.get("JobState") != "RUNNING":
        return False
    return received in {signal.SIGUSR1, signal.SIGUSR2} or facts.get("PreemptTime", "None") != "None"


def _nodes() -> Nodes | None:
    """Return the nodes of this job; None if it has one. Each of them has one task."""
    count = int(os.environ.get("SLURM_NTASKS", "1"))
    if count == 1:
        return None
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS
    return Nodes(count, int(os.environ["SLURM_PROCID"]), f"{os.environ['SLURM_LAUNCH_NODE_IPADDR']}:{port}")


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code
