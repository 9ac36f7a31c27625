"""How each program of the project starts and ends: `gptlab`, `python -m analysis.report` and the others.

`start` imports a program and runs it. `exit_code` calls its work and turns every error with a cause outside of gptlab
into one line. Ctrl-C never ends in a traceback: during imports and after the work, where nothing needs to be cleaned up
and a library could swallow a `KeyboardInterrupt`, it ends the process at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | int | None

WINDOWS = (
    "gptlab does not run on native Windows; use Linux, macOS or WSL: https://learn.microsoft.com/windows/wsl/install"
)
IMPORT_TIMEOUT_S = 60
"""Time for imports with limited memory. Some libraries then try to start a thread for ever."""


def main() -> NoReturn:
    """Run the command line."""
    start("gptlab.cli")


def start(program: str, *, heavy: str | None = None) -> NoReturn:
    """Import a program's module, call its `main` and exit with the code that it returns.

    Args:
        program: The module's full name.
        heavy: A library that the module imports and that needs much memory.
    """
    if sys.platform == "win32":  # before anything imports fcntl
        sys.exit(f"error: {WINDOWS}")
    _set_interrupt_handler(_end_at_once)

    def run() -> int | None:
        with importing(heavy):
            module = import_module(program)
        code: int | None = module.main()
        return code

    sys.exit(exit_code(run))


def exit_code(work: Callable[[], int | None]) -> int:
    """Call the work of a program and return its exit code; an expected error is one line on stderr.

    With `GPTLAB_DEBUG=1`, the traceback is printed, too. Bugs are raised.
    """
    from gptlab import failures  # not above: Ctrl-C must be handled before anything else is imported
    from gptlab.terminal.output import prepare_standard_streams

    prepare_standard_streams()
    before = _set_interrupt_handler(signal.default_int_handler)
    try:
        with failures.warnings_on_stderr():
            code = work() or 0
    except SystemExit as exit_:  # such as --help
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        _set_interrupt_handler(before)
        code = failures.report(error)
    finally:
        _set_interrupt_handler(before)
    return failures.flush_stdout(code)


@contextmanager
def importing(heavy: str | None = None) -> Iterator[None]:
    """Within this context modules are imported: Ctrl-C ends the process at once.

    Args:
        heavy: A library among the modules that needs much memory. If memory is limited (`ulimit -v`), a child process
            tries the imports first, because libraries then crash, print their own errors or try for ever.

    Raises:
        GptlabError: The memory limit is too low.
    """
    before = _set_interrupt_handler(_end_at_once)
    try:
        if heavy is not None and heavy not in sys.modules and (limit := _memory_limit()):
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread takes memory, even if idle
            child = os.fork()
            if child == 0:
                yield from _attempt()
            if os.waitpid(child, 0)[1]:
                from gptlab.errors import GptlabError

                raise GptlabError(
                    f"the memory limit of {limit >> 20} MiB is too low to import {heavy}; raise it with: "
                    "ulimit -v unlimited"
                )
        yield
    finally:
        _set_interrupt_handler(before)


def _attempt() -> Iterator[None]:
    """Yield in a child process, silently, and exit."""
    try:
        signal.alarm(IMPORT_TIMEOUT_S)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        yield
    except BaseException:
        os._exit(1)
    os._exit(0)


def _memory_limit() -> int | None:
    """The limit on the process's address space in bytes, or None."""
    import resource  # absent on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _set_interrupt_handler(handler: Handler) -> Handler:
    """Set what Ctrl-C does and return what it did before. If it is ignored, as in background jobs, it stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN and handler is not None:
        with suppress(ValueError):  # only the main thread can set it, and only that thread is interrupted
            signal.signal(signal.SIGINT, handler)
    return before


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)
