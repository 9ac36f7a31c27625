"""What a long command is doing, on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console

from gptlab.failures import print_line

PATIENCE_S = 1.5
"""Work that takes less time shows nothing."""


class Progress:
    """The stages of a command. A stage is displayed once the command takes longer than `PATIENCE_S`."""

    def __init__(self) -> None:
        """Wait; `showing` starts the clock."""
        console = Console(stderr=True)
        self._status = console.status("") if console.is_terminal else None
        self._late = False
        self._stage = ""

    def stage(self, what: str) -> None:
        """Name what is done next, such as `reading the weights of 4 runs`."""
        self._stage = what
        if self._status:
            self._status.update(f"{what} …")

    def show(self) -> None:
        """Display the stage: on a terminal until the end, elsewhere as one line."""
        if self._status:
            self._status.start()
        else:
            print_line(f"{self._stage} …")

    def hide(self) -> None:
        """Remove what is displayed on a terminal."""
        if self._status:
            self._status.stop()


@contextmanager
def showing() -> Iterator[Progress]:
    """Yield a progress whose stages are displayed until the context ends."""
    progress = Progress()
    timer = Timer(PATIENCE_S, progress.show)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
        timer.join()
        progress.hide()
        sys.stderr.flush()
