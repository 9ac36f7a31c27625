"""The one door for errors: each with a cause outside of gptlab is one line on stderr; bugs keep their traceback."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptlab import project
from gptlab.errors import EXIT_FAILED, EXIT_SIGINT, EXPECTED_OS_ERRORS, GptlabError, is_out_of_memory
from gptlab.interrupts import interrupts
from gptlab.permissions import keep_others_from_writing
from gptlab.terminal.output import discard, prepare_standard_streams
from gptlab.terminal.text import one_line

OWN_PACKAGES = ("gptlab", "analysis", "experiments")
OUT_OF_MEMORY = "out of memory; close other programs, or raise the limit (ulimit -v) if there is one"
LOGGERS = ("gptlab", "analysis")


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work of a program and return its exit code. Errors are reported, and nothing is left in stdout's buffer.

    Raises:
        BaseException: A bug.
    """
    prepare_standard_streams()
    keep_others_from_writing()
    try:
        with interrupts.raised(), warnings_on_stderr():
            code = work() or 0
    except SystemExit as exit_:  # such as --help
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        code = report(error)
    return flush_stdout(code)


def report(error: BaseException) -> int:
    """Print an error with a cause outside of gptlab as one line, and return the exit code.

    `GPTLAB_DEBUG=1` adds the traceback.

    Raises:
        BaseException: The error itself, if it is a bug.
    """
    if os.environ.get("GPTLAB_DEBUG", "0") not in {"", "0"}:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):  # `gptlab runs | head` needs no message
        return EXIT_FAILED
    if isinstance(error, OSError) and error.filename is None and (code := flush_stdout(0)):
        return code
    message = describe(error)
    if message is None:
        raise error
    print_line(f"error: {message}")
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGINT
    return error.exit_code if isinstance(error, GptlabError) else EXIT_FAILED


def describe(error: BaseException) -> str | None:
    """Return the message for an error with a cause outside of gptlab, or None for a bug."""
    if isinstance(error, GptlabError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, ImportError):
        return _describe_import(error)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if f"{type(error).__module__}.{type(error).__name__}" == "safetensors._safetensors_rust.SafetensorError":
        return f"safetensors: {error}"  # a damaged file or a full disk; importing the class would take its library
    if isinstance(error.__cause__, OSError):  # a library wraps it
        return _describe_os_error(error.__cause__)
    return None


def _describe_import(error: ImportError) -> str | None:
    """A library that is missing or cannot be loaded; an error in our own modules is a bug."""
    package = (error.name or "").partition(".")[0]
    if package in OWN_PACKAGES:
        return None
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package '{package}' is missing; install it with: pip install -e '.[analysis]'"
    return f"{error.name or 'a library'} cannot be imported: {error}"


def _describe_os_error(error: OSError) -> str | None:
    reason = error.strerror or str(error)
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes | Path) else ""
    if error.errno in EXPECTED_OS_ERRORS:
        return f"{reason}{where}"
    if reason.startswith("No usable temporary directory"):  # from `tempfile`
        return f"{reason}; free space there, or set TMPDIR to a directory that can be written"
    if error.errno == errno.ENOENT and not _exists_working_directory():
        return "the working directory no longer exists; change to another one"
    if error.errno in {errno.ENOENT, errno.ENOTEMPTY} and where and _is_data(Path(os.fsdecode(error.filename))):
        return f"{reason}{where}; another process may have moved or removed it"
    return None


def _exists_working_directory() -> bool:
    try:
        return Path.cwd().exists()
    except OSError:
        return False


def _is_data(path: Path) -> bool:
    """Whether a path is in the runs or the cache directory, which other processes change."""
    try:
        return any(path.is_relative_to(folder) for folder in (project.runs_directory(), project.cache_directory()))
    except (GptlabError, OSError):
        return False


def print_line(message: str) -> None:
    """Print one line on stderr, if that is possible."""
    try:
        sys.stderr.write(one_line(message) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def flush_stdout(code: int) -> int:
    """Write whatever stdout has buffered. Returns the exit code, which is a failure if that is impossible."""
    try:
        sys.stdout.flush()
    except ValueError:  # it was closed
        return code
    except OSError as error:
        discard(sys.stdout)  # else the interpreter tries again at its exit and prints a traceback
        if not isinstance(error, BrokenPipeError) and code == 0:
            print_line(f"error: stdout cannot be written: {error.strerror}")
        return code or EXIT_FAILED
    return code


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Within this context, each warning of the project's loggers is one line on stderr, unless a console prints it."""
    handler = _LineHandler(logging.WARNING)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_line(record.getMessage())
