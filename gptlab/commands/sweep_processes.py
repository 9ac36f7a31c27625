"""The processes of a sweep: each run is trained by a `gptlab run` of its own, a few at a time."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from gptlab.commands.sweep_plan import Job
from gptlab.limits import THREAD_VARIABLES
from gptlab.training.signals import StopSignals

POLL_S = 0.1
MAX_LAST_WORDS = 4096
"""Bytes of standard error to search for the reason of a failure."""


@dataclass
class Child:
    """A process that trains a run."""

    job: Job
    threads: int
    _process: subprocess.Popen[bytes]
    _errors: IO[bytes]

    def stop(self) -> None:
        """Ask the process to save and to end; a second time, to end at once."""
        self._process.send_signal(signal.SIGTERM)  # not SIGINT, which background jobs ignore

    def ended(self, *, wait: bool = False) -> "Ended | None":
        """Return how the process has ended, or None if it has not."""
        code = self._process.wait() if wait else self._process.poll()
        if code is None:
            return None
        with self._errors:
            words = _last_line(self._errors)
        if code < 0:
            return Ended(self.job, 128 - code, f"the process was ended by {signal.Signals(-code).name}")
        if code == 0:
            return Ended(self.job, code, None)
        reason = words.removeprefix("error: ").removeprefix(f"{self.job.run_id} ").removeprefix("diverged: ")
        return Ended(self.job, code, reason or f"exit code {code}")


@dataclass(frozen=True)
class Ended:
    """How the process of a run ended."""

    job: Job
    exit_code: int
    """128 plus the signal's number if a signal ended it."""
    error: str | None
    """Why it failed, in one line."""


class Observer(Protocol):
    """Who is told what becomes of the processes."""

    def started(self, child: Child) -> None:
        """A process has been started."""

    def ended(self, ended: Ended) -> None:
        """A process has ended."""

    def stopping(self, received: signal.Signals, running: Sequence[Child]) -> None:
        """A signal asks the sweep to stop; the processes have been asked to save."""

    def tick(self, running: Sequence[Child], waiting: Sequence[Job]) -> None:
        """Called several times a second."""


class _StopRequests(StopSignals):
    """Signals that ask the sweep to stop; a second one does not end this process, but its children."""

    insisted = False

    def insist(self, number: int) -> None:
        """Remember a second signal."""
        self.insisted = True


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    start: Callable[[Job], Child],
    observer: Observer,
) -> tuple[list[Ended], signal.Signals | None]:
    """Run the jobs in their order, so many at once, until all have ended or a signal asks to stop.

    The first signal makes all processes save and end, and no other is started. A second Ctrl-C or SIGTERM ends them
    at once.

    Args:
        jobs: The jobs.
        at_once: How many processes run at once.
        start: Starts the process of a job.
        observer: Is told what happens.

    Returns:
        How the processes ended that were started, and the signal that stopped the sweep, or None.
    """
    waiting, running, results = deque(jobs), list[Child](), list[Ended]()
    try:
        with _StopRequests() as stop:
            asked = 0  # how often the processes have been asked to stop
            while running or (waiting and not stop.received):
                while waiting and len(running) < at_once and not stop.received:
                    running.append(start(waiting.popleft()))
                    observer.started(running[-1])
                if stop.received and asked < 1 + stop.insisted:
                    asked += 1
                    for child in running:
                        child.stop()
                    if asked == 1:
                        observer.stopping(stop.received, running)
                for child in running.copy():
                    if ended := child.ended():
                        running.remove(child)
                        results.append(ended)
                        observer.ended(ended)
                observer.tick(running, waiting)
                time.sleep(POLL_S)  # no call waits for several processes and signals at once
            return results, stop.received
    finally:  # also after an error of this process, no run goes on by itself
        for child in running:
            child.stop()
        for child in running:
            child.ended(wait=True)


def start_process(job: Job, options: Sequence[str], threads: int) -> Child:
    """Start the process that trains a run.

    Args:
        job: The run.
        options: Options of `gptlab run` besides those of the run itself.
        threads: The number of threads to compute with.

    Raises:
        OSError: It cannot be started.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - `Child.ended` closes it
    command = ["run", *job.point.arguments, "--seed", str(job.seed), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "gptlab", *command],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the run's log has it, too
        stderr=errors,
        process_group=0,  # Ctrl-C on a terminal is for the sweep only, which asks each process once
    )
    return Child(job, threads, process, errors)


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_LAST_WORDS))
    lines = [" ".join(line.split()) for line in file.read().decode(errors="replace").split("\n")]
    errors = [line for line in lines if line.startswith("error: ")]
    return next((line for line in reversed(errors or lines) if line), "")
