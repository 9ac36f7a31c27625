"""The mirror process: copies one run to W&B, so that W&B can neither delay nor end the training process.

    python gptlab/mirror/__main__.py REPORTS RUN_DIRECTORY WANDB_PARENT MODE FINISH_TIMEOUT_S

Its only source is the run's directory. A line on standard input means that the directory has changed. The end of
standard input means that the attempt has ended or was killed: the process uploads the rest and exits.

It reports to the file descriptor REPORTS, one JSON object per line: `mode` and `reason` first, `url` once W&B is
connected, and at the end either `step`, the last step in W&B, or `error`. What it prints before it has started, on
standard error, is the reason why it could not start. What anything prints later is discarded.
"""

import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from gptlab.errors import EXIT_FAILED, GptlabError
from gptlab.files import NOT_SUPPORTED, no_locks
from gptlab.interrupts import STOP_SIGNALS
from gptlab.mirror.mirror import total_timeout_s, upload_timeout_s
from gptlab.mirror.modes import AUTO, SYNC, Mode
from gptlab.mirror.sync import SyncedSizes
from gptlab.mirror.wandb_run import WandbRun, choose_mode, configured_server
from gptlab.temporary import temporary_directory
from gptlab.tracking import run as runs
from gptlab.tracking.metrics import NewRows
from gptlab.tracking.run import Run

MAX_SOCKET_FOLDER_BYTES = 40
"""Length of the longest path to which `wandb-core` can append `/wandb-PID-PID-NUMBER/socket`: 104 bytes in all."""


def main() -> None:
    """Mirror a run until standard input ends."""
    reports, directory, wandb_parent, requested, finish_timeout_s = sys.argv[1:]
    for received in STOP_SIGNALS:  # the training process handles them and closes standard input
        signal.signal(received, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.set_inheritable(int(reports), False)

    def report(**fields: Any) -> None:
        with suppress(OSError):  # the training process was killed
            os.write(int(reports), json.dumps(fields).encode() + b"\n")

    try:
        # W&B removes its temporary files in exit hooks, which `os._exit` skips.
        with temporary_directory("wandb") as temporary:
            tempfile.tempdir = str(temporary)
            if len(os.fsencode(temporary)) <= MAX_SOCKET_FOLDER_BYTES:
                os.environ["TMPDIR"] = str(temporary)  # so that nothing of a killed `wandb-core` remains
            _mirror(runs.load_run(Path(directory)), Path(wandb_parent), requested, float(finish_timeout_s), report)
    except Exception as error:
        report(error=_describe(error))
    os._exit(0)  # W&B's exit hooks wait for its service without a time limit


def _mirror(run: Run, wandb_parent: Path, requested: str, finish_timeout_s: float, report: Callable[..., None]) -> None:
    mode, reason = _resolve_mode(requested)
    report(mode=mode, reason=reason)
    if mode == "off" or not _wait_for_change():
        return
    wandb_directory = wandb_parent / "wandb"
    wandb_directory.mkdir(exist_ok=True)
    # The mirror of an earlier attempt may still be uploading.
    patience_s = finish_timeout_s if requested == SYNC else -1
    with _lock(wandb_directory / f"{run.id}.lock", patience_s):
        in_run = wandb_parent == run.directory
        training_pid = os.getppid() if in_run and requested != SYNC else None
        mirrored = WandbRun(run, wandb_parent, mode, upload_timeout_s(run, finish_timeout_s), training_pid)
        report(url=mirrored.url)
        rows = NewRows(run.directory)
        mirrored.log_rows(rows)
        while _wait_for_change():
            mirrored.log_rows(rows)
        signal.alarm(math.ceil(total_timeout_s(run, finish_timeout_s)))
        sizes = SyncedSizes.of(run)
        mirrored.log_rows(rows)
        errors = [_error_of(mirrored.log_samples)]
        if in_run:
            errors.append(_error_of(mirrored.log_artifact))
        mirrored.finish(0 if run.history().outcome == "complete" else EXIT_FAILED)
        if any(errors):
            raise GptlabError("; ".join(filter(None, errors)))
        if mode == "online":
            sizes.save(run)
        report(step=rows.last_step)


def _resolve_mode(requested: str) -> tuple[Mode, str]:
    if requested != SYNC:
        return choose_mode(None if requested == AUTO else cast(Mode, requested))
    server = configured_server()
    reason = server.unavailable_reason() if server else "there is no API key; `wandb login` sets one"
    if server is None or reason:
        raise GptlabError(str(reason))
    return "online", server.url


@contextmanager
def _lock(path: Path, patience_s: float) -> Iterator[None]:
    """Hold the lock of a run's uploads; a negative `patience_s` waits for it without a limit.

    Raises:
        GptlabError: Another process holds it.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(patience_s)
    except Timeout:
        raise GptlabError("another process is still uploading it; sync it again when that has ended") from None
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise no_locks(path.parent, error, "GPTLAB_RUNS") from error
    try:
        yield
    finally:
        lock.release()


def _wait_for_change() -> bool:
    """Wait for a notification from the training process. Returns False when standard input has ended."""
    return bool(os.read(0, 1 << 16))


def _error_of(action: Callable[[], None]) -> str | None:
    try:
        action()
    except Exception as error:
        return _describe(error)
    return None


def _describe(error: Exception) -> str:
    """The error on one line, with its type unless it explains itself."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    kind = "" if isinstance(error, GptlabError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())
