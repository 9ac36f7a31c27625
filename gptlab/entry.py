"""The entry points of all programs: `gptlab`, `python -m analysis.report` and the others.

From the first line on, Ctrl-C ends the process without a traceback. This module imports little, so that this begins
early.
"""

import sys

try:
    import signal

    from gptlab.interrupts import end_at_once
except KeyboardInterrupt:
    sys.stderr.write("error: interrupted\n")
    sys.exit(130)

TYPE_CHECKING = False  # importing `typing` takes longer than everything else here

if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line."""
    start("gptlab.cli")


def start(program: str, *, library: str | None = None) -> "NoReturn":
    """Import a program's module, call its `main` and exit with the code that it returns.

    Args:
        program: The module's full name.
        library: A library that the module imports and that needs much memory.
    """
    if sys.platform == "win32":  # before anything imports fcntl
        sys.exit(
            "error: gptlab does not run on native Windows; use Linux, macOS or WSL: "
            "https://learn.microsoft.com/windows/wsl/install"
        )
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in background jobs, where it is ignored
        signal.signal(signal.SIGINT, end_at_once)
    from importlib import import_module

    from gptlab.failures import exit_code
    from gptlab.imports import importing

    def run() -> int | None:
        with importing(library):
            module = import_module(program)
        code: int | None = module.main()
        return code

    sys.exit(exit_code(run))
