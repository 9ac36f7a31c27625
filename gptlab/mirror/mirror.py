"""Start, notify and finish the mirror process, from the training process.

The mirror process (`gptlab.mirror.process`) copies the run's directory to W&B. The training process only notifies it
after each row, so W&B, its service and its server can neither delay training nor make it fail. When training ends, the
mirror has a bounded time to upload the rest; later, `gptlab sync` uploads whatever is still missing. If the training
process is killed, the mirror uploads what was written until then and exits.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from gptlab import project
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run

FINISH_TIMEOUT_S = 60.0
"""Time for uploads after training, without artifacts."""
START_TIMEOUT_S = 20.0
"""Time for the process to start: importing wandb takes a second, or more on a busy disk."""
EXIT_GRACE_S = 5.0
"""Extra time for the process to exit by itself before it is killed."""
METRICS_BYTES_PER_S, ARTIFACT_BYTES_PER_S = 50_000, 1 << 20
"""The slowest uploads for which the timeouts suffice."""


def upload_timeout_s(run: Run, finish_timeout_s: float) -> float:
    """Return the seconds that the final upload may take: `finish_timeout_s`, plus time for an artifact."""
    artifact_bytes = 4 * run.record.spec.model.parameters if run.history().starts[-1].get("artifacts") else 0
    return finish_timeout_s + artifact_bytes / ARTIFACT_BYTES_PER_S


def total_timeout_s(run: Run, finish_timeout_s: float) -> float:
    """Return the seconds after which the mirror gives up sending rows, uploading and verifying."""
    metrics = run.directory / METRICS
    backlog_bytes = metrics.stat().st_size if metrics.exists() else 0
    upload_s = upload_timeout_s(run, finish_timeout_s)
    return upload_s + finish_timeout_s / 2 + backlog_bytes / METRICS_BYTES_PER_S


class Mirror:
    """A handle to the process that mirrors one run. In mode `off` there is no process."""

    def __init__(self, run: Run, mode: str, notice: Callable[[str], None], wandb_parent: Path | None = None) -> None:
        """Start the process. It chooses the mode and then waits for the first notification.

        Args:
            run: The run.
            mode: A `Mode`, `AUTO` or `SYNC`.
            notice: Called with a failure, at most once.
            wandb_parent: Directory in which W&B creates `wandb/`, by default the run's.
        """
        self._run, self._notice = run, notice
        self.report: dict[str, Any] = {}
        """The fields that the process has reported so far; see `gptlab.mirror.process`."""
        self._changed, self._exited, self._notified = threading.Condition(), False, False
        self._process: subprocess.Popen[bytes] | None = None
        if mode == "off":
            self.report = {"mode": "off", "reason": "requested"}
            return
        try:
            self._process = _start(run.directory.absolute(), (wandb_parent or run.directory).absolute(), mode)
        except OSError as error:
            self.report = {"mode": "off", "reason": f"the mirror process cannot be started: {error.strerror}"}
            return
        os.set_blocking(self._input.fileno(), False)
        self._reader = threading.Thread(target=self._read_reports, args=(self._process,), daemon=True)
        self._reader.start()

    @property
    def _input(self) -> IO[bytes]:
        return cast(IO[bytes], cast(subprocess.Popen[bytes], self._process).stdin)

    def _read_reports(self, process: subprocess.Popen[bytes]) -> None:
        for line in cast(IO[bytes], process.stdout):
            with self._changed:
                self.report |= json.loads(line)
                self._changed.notify_all()
        code = process.wait()
        done = "step" in self.report or self.report.get("mode") == "off" or not self._notified
        if not done:
            timed_out = code in {-signal.SIGALRM, -signal.SIGKILL}
            failure = "the upload timed out" if timed_out else f"the mirror process exited with code {code}"
            self.report.setdefault("error", failure)
        with self._changed:
            self._exited = True
            self._changed.notify_all()
        if error := self.report.get("error"):
            self._notice(
                f"W&B is incomplete ({error}); metrics.jsonl has everything; upload the rest later with: "
                f"gptlab sync {self._run.id}"
            )

    def wait_for(self, field: str) -> None:
        """Wait until the process has reported a field, has exited, or takes too long to start."""
        if self._process:
            with self._changed:
                self._changed.wait_for(lambda: field in self.report or self._exited, START_TIMEOUT_S)

    def mode(self) -> str:
        """Wait for the mode and return it with its reason, for display."""
        self.wait_for("mode")
        return f"{self.report['mode']} ({self.report['reason']})" if "mode" in self.report else "not ready yet"

    @property
    def url(self) -> str | None:
        """The run's URL, if online."""
        return self.report.get("url")

    def notify(self) -> None:
        """Tell the process that the run's directory has changed. Never blocks."""
        if self._process:
            self._notified = True
            with suppress(BlockingIOError, BrokenPipeError):  # the pipe is full, or the process has exited
                os.write(self._input.fileno(), b"\n")

    def finish(self) -> None:
        """Wait until the process has uploaded the rest and exited; kill it when its time is over."""
        if self._process is None:
            return
        self._input.close()
        self._reader.join(total_timeout_s(self._run, FINISH_TIMEOUT_S) + EXIT_GRACE_S)
        if self._reader.is_alive():
            self._process.kill()
            self._reader.join()


def _start(run_directory: Path, wandb_parent: Path, mode: str) -> subprocess.Popen[bytes]:
    arguments = [str(run_directory), str(wandb_parent), mode, str(FINISH_TIMEOUT_S)]
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab.mirror.process", *arguments],
        # `-m` imports from the working directory, and wandb reads settings there: never in a run, which may be
        # untrusted.
        cwd=project.root(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C on a terminal is for the training process only
    )
