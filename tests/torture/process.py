"""Commands in forked children of this warm process, which start at once, or in fresh processes.

Both kinds have a pipe each for stdout and stderr, because limits on files must not cut what they say; and no stdin.
"""

import contextlib
import fcntl
import logging
import os
import re
import runpy  # noqa: TID251 — this is how `python -m` starts a module
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

import analysis
import gptlab
from torture.trial import PromiseBrokenError, require

PATIENCE_S = 150
"""Seconds after which a command hangs."""
MAX_LINES = 8
"""Lines on stderr that a user may be expected to read."""
ERROR_CODES = {1, 2}

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that trials send, in addition to SIGKILL."""

OWN_FILE = re.compile("|".join(f'File "{re.escape(path)}/' for path in (*gptlab.__path__, *analysis.__path__)))
"""Part of a traceback through our own files."""

REPORT = "report"
"""Stands for `python -m analysis.report`; all other commands are gptlab's."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    words: tuple[str, ...]
    code: int
    """The exit code; minus the signal's number if a signal ended the process."""
    out: str
    err: str

    def __str__(self) -> str:
        text = f"{' '.join(self.words)} → {self.code}"
        for name, content in (("stdout", self.out), ("stderr", self.err)):
            text += f"\n--- {name}\n{content[-4000:]}" if content else ""
        return text


@dataclass(frozen=True)
class Started:
    """A command that may still run."""

    words: tuple[str, ...]
    pid: int
    out: int
    err: int
    """The ends of the pipes from which stdout and stderr are read."""

    def send(self, number: int) -> None:
        """Send a signal. The process is there until it is waited for, so no other can have its number."""
        os.kill(self.pid, number)

    def wait(self) -> Outcome:
        """Wait until it ends; kill it if it hangs."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return Outcome(self.words, code, _read_all(self.out), _read_all(self.err))
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise PromiseBrokenError(
                    f"{' '.join(self.words)} did not end within {PATIENCE_S} s\n{_read_all(self.err)}"
                )
            time.sleep(0.005)  # polled, because a wait has no bound


def _nothing() -> None:
    pass


def start(*words: str, prepare: Callable[[], object] = _nothing, at_end: Callable[[], object] = _nothing) -> Started:
    """Start a command in a forked child, which calls `prepare` first and `at_end` last."""
    (out, child_out), (err, child_err) = _pipe(), _pipe()
    sys.stdout.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the child has this process's handlers and streams
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _take_streams(child_out, child_err)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            prepare()
            code = _run_module(words)
            at_end()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(child_out)
    os.close(child_err)
    return Started(words, child, out, err)


def run(*words: str, prepare: Callable[[], object] = _nothing, at_end: Callable[[], object] = _nothing) -> Outcome:
    """Run a command in a forked child, which calls `prepare` first and `at_end` last."""
    return start(*words, prepare=prepare, at_end=at_end).wait()


def start_fresh(*words: str, script: str = 'exec "$@"') -> Started:
    """Start a command in a fresh process.

    Args:
        words: The command.
        script: A shell script that starts the command, `"$@"`.
    """
    (out, child_out), (err, child_err) = _pipe(), _pipe()
    module = ["analysis.report", *words[1:]] if words[0] == REPORT else ["gptlab", *words]
    command = ["bash", "-c", script, "bash", sys.executable, "-m", *module]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=child_out, stderr=child_err)
    os.close(child_out)
    os.close(child_err)
    process.returncode = 0  # `Started.wait` waits for it
    return Started(words, process.pid, out, err)


def check_manners(outcome: Outcome, codes: set[int], *, silent: bool = False) -> None:
    """Check what every command owes its user: an exit code that fits, an error in one line, no traceback.

    Args:
        outcome: How the command ended.
        codes: The exit codes that fit.
        silent: Whether an error may be silent, because stderr cannot be written.
    """
    both = outcome.out + outcome.err
    for phrase in ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error"):
        require(phrase not in both, f"{phrase!r}: {outcome}")
    raw = {
        character for character in both if (character < " " or "\x7f" <= character < "\xa0") and character not in "\n\t"
    }
    require(not raw, f"control characters {sorted(raw)}: {outcome}")
    require(outcome.code in codes, f"exit code {outcome.code}, not one of {sorted(codes)}: {outcome}")
    if "--json" not in outcome.words:  # which moves everything but the document to stderr
        require(outcome.err.count("\n") <= MAX_LINES, f"more than {MAX_LINES} lines on stderr: {outcome}")
    if outcome.code in ERROR_CODES and not silent:
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        require(len(errors) == 1, f"{len(errors)} lines with 'error: ' on stderr: {outcome}")


def ended_before_first_line(outcome: Outcome) -> bool:
    """Whether Ctrl-C came before gptlab's first line: Python itself ends with a traceback without a file of ours."""
    return "\nKeyboardInterrupt" in outcome.err and "Traceback" in outcome.err and not OWN_FILE.search(outcome.err)


def _pipe() -> tuple[int, int]:
    """Make a pipe that holds all that a command prints. Returns its ends for reading and writing."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(reading, False)
    return reading, writing


def _read_all(descriptor: int) -> str:
    """Return what is in a pipe, without waiting for other processes that hold its other end, and close it."""
    content = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(descriptor, 1 << 20):
            content += block
    os.close(descriptor)
    return content.decode(errors="replace")


def _take_streams(out: int, err: int) -> None:
    """Give this process stdin, stdout and stderr as a fresh one has them, and Python's own signal handlers."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for source, descriptor in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(source, descriptor)
        os.close(source)
    open_streams()
    for name in ("", "gptlab"):
        logging.getLogger(name).handlers.clear()  # those of pytest, or of a console of this process


def open_streams(encoding: str = "utf-8") -> None:
    """Make `sys.stdout` and `sys.stderr` anew, as Python does when it starts; None for a descriptor that is closed."""
    sys.stdin = _stream(0, "r", encoding, "strict", -1)
    sys.stdout = _stream(1, "w", encoding, "strict", -1)
    sys.stderr = _stream(2, "w", encoding, "backslashreplace", 1)


def _stream(descriptor: int, mode: str, encoding: str, errors: str, buffering: int) -> TextIO | None:
    try:
        return os.fdopen(descriptor, mode, buffering, encoding=encoding, errors=errors, closefd=False)
    except OSError:
        return None


def _run_module(words: Sequence[str]) -> int:
    """Do what `python -m` does, and return the exit code."""
    module = "analysis.report" if words[0] == REPORT else "gptlab"
    sys.argv = [module, *(words[1:] if words[0] == REPORT else words)]
    sys.modules.pop(module if words[0] == REPORT else "", None)  # runpy warns of a module that was imported before
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        sys.stderr.write("Exception ignored in: stdout\n")
        code = 120
    return code
