"""Start, notify and finish the mirror process, from the training process.

The mirror process (`gptlab.mirror.process`) copies the run's directory to W&B. The training process only notifies it
after each row, so W&B, its service and its server can neither delay training nor make it fail. When training ends, the
mirror has a bounded time to upload the rest; later, `gptlab sync` uploads whatever is still missing. If the training
process is killed, the mirror uploads what was written until then and exits.

The process has succeeded if it reports the last step that W&B has. Anything else, from whatever cause, is a failure.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.mirror.child import Child, start
from gptlab.mirror.modes import AUTO, WANDB_MODES
from gptlab.terminal.text import printable, shell_command
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
    artifact_bytes = 4 * run.record.model_size.parameters if run.history().starts[-1].get("artifacts") else 0
    return finish_timeout_s + artifact_bytes / ARTIFACT_BYTES_PER_S


def total_timeout_s(run: Run, finish_timeout_s: float) -> float:
    """Return the seconds after which the mirror gives up sending rows, uploading and verifying."""
    metrics = run.directory / METRICS
    backlog_bytes = metrics.stat().st_size if metrics.exists() else 0
    upload_s = upload_timeout_s(run, finish_timeout_s)
    return upload_s + finish_timeout_s / 2 + backlog_bytes / METRICS_BYTES_PER_S


def copy_problem(run: Run) -> str | None:
    """Return why a run must not be sent to W&B as the run that its record names; None if it may."""
    if not run.is_copy:
        return None
    return f"{project.display_path(run.directory)} is a copy: its directory is not named {run.id}"


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
        self._out_of_time, self._announced = False, False
        self._child: Child | None = None
        reason = _reason_for_off(mode) or (copy_problem(run) if wandb_parent is None else None)
        if reason:
            self.report = {"mode": "off", "reason": reason}
            return
        places = [str(path.absolute()) for path in (run.directory, wandb_parent or run.directory)]
        try:
            self._child = start([*places, mode, str(FINISH_TIMEOUT_S)])
        except OSError as error:
            self.report = {"error": f"the mirror process cannot be started: {error.strerror}"}
            return
        self._reader = threading.Thread(target=self._read_reports, args=(self._child,), daemon=True)
        self._reader.start()

    def _read_reports(self, child: Child) -> None:
        for fields in child.reports():
            with self._changed:
                self.report |= fields
                self._changed.notify_all()
        ending = child.wait()
        with self._changed:
            if "step" not in self.report and self.report.get("mode") != "off":
                if self._out_of_time:
                    started = "mode" in self.report
                    ending = "the upload timed out" if started else "the mirror process did not start in time"
                self.report.setdefault("error", ending)
            self._exited = True
            self._changed.notify_all()
        if self._notified:
            self._announce_failure()

    def _announce_failure(self) -> None:
        """Print why W&B is incomplete, if it is; once."""
        with self._changed:
            error = None if self._announced else self.report.get("error")
            self._announced |= error is not None
        if error:
            self._notice(
                f"W&B is incomplete ({printable(error)}); metrics.jsonl has everything; upload the rest later with: "
                f"{shell_command('sync', self._run.reference)}"
            )

    def wait_for(self, field: str) -> None:
        """Wait until the process has reported a field, has exited, or takes too long to start."""
        if self._child:
            with self._changed:
                self._changed.wait_for(lambda: field in self.report or self._exited, START_TIMEOUT_S)

    def mode(self) -> str:
        """Wait for the mode and return it with its reason, for display."""
        self.wait_for("mode")
        if "mode" in self.report:
            return printable(f"{self.report['mode']} ({self.report['reason']})")
        return printable(f"failed ({self.report['error']})") if "error" in self.report else "not ready yet"

    @property
    def intended_mode(self) -> str:
        """The mode, as far as it is known. Unless it is `off`, W&B should have the run, whatever the mirror does."""
        return str(self.report.get("mode", AUTO))

    @property
    def url(self) -> str | None:
        """The run's URL, if online."""
        return self.report.get("url")

    def notify(self) -> None:
        """Tell the process that the run's directory has changed. Never blocks."""
        self._notified = True
        if self._child:
            with suppress(BlockingIOError, BrokenPipeError):  # the pipe is full, or the process has exited
                os.write(self._child.input.fileno(), b"\n")

    def finish(self) -> None:
        """Wait until the process has uploaded the rest and exited; kill it when its time is over."""
        if self._child:
            self._child.input.close()
            upload_s = total_timeout_s(self._run, FINISH_TIMEOUT_S) if self._notified else 0
            self._reader.join(upload_s + EXIT_GRACE_S)
            if self._reader.is_alive():
                self._out_of_time = True
                self._child.process.kill()
                self._reader.join()
        if self._notified:
            self._announce_failure()


def _reason_for_off(mode: str) -> str | None:
    if mode == "off":
        return "requested"
    if mode == AUTO and WANDB_MODES.get(os.environ.get("WANDB_MODE", "")) == "off":
        return "set by WANDB_MODE"
    return None
