"""Handle Ctrl-C and SIGTERM during training: the first stops training after a save, the second ends the process."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """A context manager that handles both signals; `received` is the first signal, or None."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)  # the next attempt removes what this leaves unfinished
        self.received = signal.Signals(number)
