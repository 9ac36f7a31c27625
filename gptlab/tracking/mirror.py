"""The run in Weights & Biases: a mirror of its directory that never gets in training's way.

Another process looks after it (`gptlab.tracking.wandb_process`) and reads the run's directory, which has everything.
Whoever trains only nudges it after each row. Whatever W&B, its service or its server do, training neither waits for
them nor ends with them; at the end the other process has a bounded time to send the rest, and `gptlab sync` sends what
is still missing later. It goes on when the one that trains is killed, and sends what was written until then.
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
from typing import IO, Any, Literal, cast

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.spec import did_you_mean
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run

Mode = Literal["online", "offline", "off"]
Notice = Callable[[str], None]

WANDB_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}
"""What `WANDB_MODE` may say, and what it comes to."""

AUTO, SYNC = "auto", "sync"
"""Modes beside W&B's own: what the user's settings and the server allow; and online or not at all."""

FINISH_S = 60.0
"""How long W&B may go on uploading when training has ended, apart from an artifact."""
START_S = 20.0
"""How long to wait for the process to come up: importing wandb takes a second, on a busy disk more."""
METRICS_BYTES_PER_S, ARTIFACT_BYTES_PER_S = 50_000, 1 << 20
"""What is sent in a second at least."""
STOPPED_S = 5.0
"""How much longer to wait for a process that should have ended by itself."""


def check_wandb_mode() -> None:
    """See that `WANDB_MODE`, where it is set, names a mode.

    Raises:
        BadInputError: It does not.
    """
    value = os.environ.get("WANDB_MODE")
    if value and value not in WANDB_MODES:
        hint = did_you_mean(value, list(WANDB_MODES)) or f"; there are: {', '.join(WANDB_MODES)}"
        raise BadInputError(f"there is no WANDB_MODE '{value}'{hint}")


def upload_s(run: Run, finish_s: float) -> float:
    """Seconds that uploading may go on at the end; more where there is an artifact."""
    artifact = 4 * run.record.spec.model.parameters if run.starts()[-1].get("artifacts") else 0
    return finish_s + artifact / ARTIFACT_BYTES_PER_S


def longest_s(run: Run, finish_s: float) -> float:
    """Seconds in which a mirror ends at the latest: connecting, sending rows, uploading, looking at the result."""
    metrics = run.directory / METRICS
    backlog = metrics.stat().st_size if metrics.exists() else 0
    return upload_s(run, finish_s) + finish_s / 2 + backlog / METRICS_BYTES_PER_S


class Mirror:
    """The process that mirrors a run, as seen by the one that trains it; in mode `off` there is none."""

    def __init__(self, run: Run, mode: str, notice: Notice, into: Path | None = None) -> None:
        """Start the process. It decides on the mode, and then waits for the first nudge.

        Args:
            run: The run.
            mode: One of W&B's, `AUTO` or `SYNC`.
            notice: Is told what goes wrong, once at most.
            into: Where W&B's own files go, if not into the run.
        """
        self._run, self._notice = run, notice
        self.said: dict[str, Any] = {}
        """What the process has said so far."""
        self._news, self._ended, self._nudged = threading.Condition(), False, False
        self._process: subprocess.Popen[bytes] | None = None
        if mode == "off":
            self.said = {"mode": "off", "why": "as asked"}
            return
        try:
            self._process = _start(run.directory.absolute(), (into or run.directory).absolute(), mode)
        except OSError as error:
            self.said = {"mode": "off", "why": f"its process does not start: {error.strerror}"}
            return
        os.set_blocking(self._input.fileno(), False)
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    @property
    def _input(self) -> IO[bytes]:
        return cast(IO[bytes], cast(subprocess.Popen[bytes], self._process).stdin)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        for line in cast(IO[bytes], process.stdout):
            with self._news:
                self.said |= json.loads(line)
                self._news.notify_all()
        code = process.wait()
        done = "step" in self.said or self.said.get("mode") == "off" or not self._nudged
        if not done:
            late = code in {-signal.SIGALRM, -signal.SIGKILL}
            self.said.setdefault("problem", "it was not done in time" if late else f"its process ended with {code}")
        with self._news:
            self._ended = True
            self._news.notify_all()
        if problem := self.said.get("problem"):
            self._notice(
                f"W&B is behind ({problem}); metrics.jsonl has everything, and this sends it later: "
                f"gptlab sync {self._run.id}"
            )

    def wait_for(self, word: str) -> None:
        """Wait until the process has said this, has ended, or is slow to come up."""
        if self._process:
            with self._news:
                self._news.wait_for(lambda: word in self.said or self._ended, START_S)

    def mode(self) -> str:
        """The mode and why, for people."""
        self.wait_for("mode")
        return f"{self.said['mode']} ({self.said['why']})" if "mode" in self.said else "not ready yet"

    @property
    def url(self) -> str | None:
        """Where the run is to be seen, when online."""
        return self.said.get("url")

    def nudge(self) -> None:
        """Say that the run's directory has something new. Never waits."""
        if self._process:
            self._nudged = True
            with suppress(BlockingIOError, BrokenPipeError):  # it has been told often enough, or is gone
                os.write(self._input.fileno(), b"\n")

    def finish(self) -> None:
        """Let the process send the rest and end; within a bound, after which it is killed."""
        if self._process is None:
            return
        self._input.close()
        self._listener.join(longest_s(self._run, FINISH_S) + STOPPED_S)
        if self._listener.is_alive():
            self._process.kill()
            self._listener.join()


def _start(directory: Path, into: Path, mode: str) -> subprocess.Popen[bytes]:
    # `-m` imports from where it stands, and wandb reads settings there: never in a run, which may be a stranger's.
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab.tracking.wandb_process", str(directory), str(into), mode, str(FINISH_S)],
        cwd=project.root(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C on a terminal is for the process that trains
    )
