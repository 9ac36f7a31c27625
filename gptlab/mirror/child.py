"""The mirror process as its parent sees it: how it is started, what it reports and how it ended."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from gptlab import project
from gptlab.mirror.environment import wandb_environment

MAX_LAST_WORDS = 4096
"""Bytes of standard error to search for the reason why the process did not start."""


@dataclass(frozen=True)
class Child:
    """A mirror process."""

    process: subprocess.Popen[bytes]
    _reports: IO[bytes]
    _errors: IO[bytes]

    @property
    def input(self) -> IO[bytes]:
        """The pipe for notifications; writing to it never blocks."""
        return cast(IO[bytes], self.process.stdin)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Yield the fields that the process reports, until it exits."""
        with self._reports:
            yield from map(_parse_report, self._reports)

    def wait(self) -> str:
        """Wait until the process has exited. Returns how it ended, for an error message."""
        code = self.process.wait()
        with self._errors:
            if code == -signal.SIGALRM:
                return "the upload timed out"
            if code < 0:
                return f"the mirror process was killed by {signal.Signals(-code).name}"
            last_words = _last_line(self._errors)
            return f"the mirror process exited with code {code}{f': {last_words}' if last_words else ''}"


def start(arguments: list[str]) -> Child:
    """Start the process; see `gptlab.mirror.process` for the arguments after the first.

    Raises:
        OSError: It cannot be started.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - `Child.wait` closes it
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("__main__.py")), str(writing), *arguments],
            env=wandb_environment(),
            # wandb reads settings in its working directory: never in a run, which may be untrusted.
            cwd=project.find_root() or "/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[writing],
            start_new_session=True,  # Ctrl-C on a terminal is for the training process only
        )
    except OSError:
        os.close(reading)
        errors.close()
        raise
    finally:
        os.close(writing)
    child = Child(process, os.fdopen(reading, "rb"), errors)
    os.set_blocking(child.input.fileno(), False)
    return child


def _parse_report(line: bytes) -> dict[str, Any]:
    """The fields of a report; none if the process was killed while it wrote the line."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_LAST_WORDS))
    lines = file.read().decode(errors="replace").split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
