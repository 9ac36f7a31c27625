"""Import a program and its libraries: Ctrl-C and too little memory end in one line."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gptlab.errors import GptlabError
from gptlab.interrupts import end_at_once, on_interrupt

TIMEOUT_S = 60
"""Time for imports with limited memory. Some libraries try to start a thread for ever."""


@contextmanager
def importing(library: str | None = None) -> Iterator[None]:
    """Within this context modules are imported: Ctrl-C ends the process at once.

    Nothing needs to be cleaned up yet, and a library could swallow a `KeyboardInterrupt`.

    Args:
        library: A library among the modules that needs much memory. If memory is limited (`ulimit -v`), a child process
            tries the imports first, because libraries then crash, print their own errors or hang.

    Raises:
        GptlabError: The memory limit is too low.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with on_interrupt(end_at_once):
        if library is not None and library not in sys.modules and limit != resource.RLIM_INFINITY:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread takes memory, even if idle
            child = os.fork()
            if child == 0:
                yield from _attempt()
            if os.waitpid(child, 0)[1]:
                raise GptlabError(
                    f"the memory limit of {limit >> 20} MiB is too low to import {library}; raise it with: "
                    "ulimit -v unlimited"
                )
        yield


def _attempt() -> Iterator[None]:
    """Yield in a child process, silently, and end it."""
    try:
        signal.alarm(TIMEOUT_S)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        yield
    except ModuleNotFoundError:
        pass  # the parent reports it
    except BaseException:
        os._exit(1)
    os._exit(0)
