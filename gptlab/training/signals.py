"""Handle the signals that ask training to end: the first one stops it after a save.

Who sends them: the keyboard SIGINT and SIGQUIT; `kill`, systems and schedulers SIGTERM; a closed terminal SIGHUP; Slurm
and Grid Engine SIGUSR1 or SIGUSR2 before a time limit; the kernel SIGXCPU after a limit of CPU time; a power supply or
a container's host SIGPWR. By default, each of them ends a process at once.
"""

import os
import signal
from collections.abc import Collection
from types import FrameType, TracebackType
from typing import Self

from gptlab.interrupts import STOP_SIGNALS, interrupts

INSISTENT = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
"""Signals of which a second one ends the process at once.

The others may come in addition or repeatedly: the shell and the kernel both send SIGHUP when a terminal closes, the
kernel sends SIGXCPU every second, Slurm sends SIGTERM some time after SIGUSR1. At a time limit, Slurm sends SIGTERM
twice at once, so a second one does not count in a job of Slurm; SIGKILL follows.
"""


class StopSignals:
    """A context manager that handles these signals; `received` is the first signal, or None.

    A signal that was ignored when the context began, such as SIGHUP under `nohup`, stays ignored.
    """

    def __init__(self, insistent: Collection[signal.Signals] = INSISTENT) -> None:
        """Create the context.

        Args:
            insistent: Signals of which a second one ends the process at once. Processes that torchrun has started take
                none: a signal may arrive twice, and torchrun itself ends those that do not end in time.
        """
        self.received: signal.Signals | None = None
        self.insistent = insistent
        self._repeated = False

    def stop_requested(self) -> bool:
        """Return whether a signal was received."""
        return self.received is not None

    def __enter__(self) -> Self:
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        ignored = (signal.SIG_IGN, None)  # None: a handler that Python did not install
        self._before = {number: handler for number, handler in before.items() if handler not in ignored}
        for number in self._before:
            signal.signal(number, self._handle)
        if interrupts.received:  # Python dropped its exception
            self.received = signal.SIGINT
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self.insistent and not (number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ):
            if self._repeated:
                self.insist(number)
            self._repeated = True
        if self.received is None:
            self.received = signal.Signals(number)

    def insist(self, number: int) -> None:
        """Handle a second signal: end the process at once. The next attempt removes what this leaves unfinished."""
        os._exit(128 + number)
