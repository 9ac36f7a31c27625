"""Forked children in which one thing is wrong, and what they print: a fault per child costs a few milliseconds.

The parent has imported everything before, so a child only does what is tested.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUG = 99
"""The exit code of a child that ends with a traceback."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """The exit code, or the negative number of the signal that ended it."""
    out: str
    err: str


def in_child(
    work: Callable[[], object],
    folder: Path,
    *,
    stdout: int | None = None,
    encoding: str = "utf-8",
    meanwhile: Callable[[int], object] = lambda child: None,
) -> Ended:
    """Call `work` in a forked child with standard streams of its own, and return how it ended.

    Args:
        work: What the child does; its result or the code of its `SystemExit` is the exit code.
        folder: A directory for two files.
        stdout: A descriptor for stdout, instead of a file.
        encoding: The encoding of stdout and stderr, which raise an error for other characters.
        meanwhile: Called in the parent with the child's process id.
    """
    out, err = (os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in ("out", "err"))
    child = os.fork()
    if child == 0:
        os.dup2(out if stdout is None else stdout, 1)
        os.dup2(err, 2)
        os.closerange(3, max(out, err, stdout or 0) + 1)
        sys.stdout = os.fdopen(1, "w", encoding=encoding, errors="strict", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="strict", closefd=False)
        os._exit(_exit_code(work))
    meanwhile(child)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(out)
    os.close(err)
    return Ended(status, (folder / "out").read_text(errors="replace"), (folder / "err").read_text(errors="replace"))


def _exit_code(work: Callable[[], object]) -> int:
    """Do the work and what the interpreter does at its end."""
    try:
        code = work() or 0
    except SystemExit as exit_:
        code = exit_.code or 0
    except BaseException:
        traceback.print_exc()
        code = BUG
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        code = BUG
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    return int(code)
