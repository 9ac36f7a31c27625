"""Signals that ask a program to end, and what Ctrl-C does.

Ctrl-C ends a program at once, or it raises a `KeyboardInterrupt`, but never ends in a traceback.
The programs import this module first, so it imports little; see `gptlab.entry`.
"""

import os
import signal
import sys
import threading
from contextlib import contextmanager

TYPE_CHECKING = False  # importing `typing` takes longer than everything else here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any, NoReturn

    Handler = Callable[[int, FrameType | None], Any] | int


STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR")
    if name in signal.Signals.__members__  # macOS has no SIGPWR
)
"""Signals that ask a process to end; see `gptlab.training.signals`."""


def end_at_once(number: int, frame: "FrameType | None") -> "NoReturn":
    """End the process without a traceback and without cleaning up."""
    try:
        os.write(2, b"error: interrupted\n")
    finally:  # also if stderr is closed
        os._exit(128 + number)


class Interrupts:
    """Raises a `KeyboardInterrupt` at Ctrl-C and remembers it: Python drops exceptions in some of its callbacks."""

    def __init__(self) -> None:
        self.received = False
        self._forks = False

    def handle(self, number: int, frame: "FrameType | None") -> None:
        """Handle the signal."""
        self.received = True
        if not self._forks:
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> "Iterator[None]":
        """Within this context, Ctrl-C raises a `KeyboardInterrupt`. One that Python drops is not printed."""
        before = sys.unraisablehook

        def hook(dropped: "sys.UnraisableHookArgs") -> None:
            if not (self.received and dropped.exc_type is KeyboardInterrupt):
                before(dropped)

        self.received = False
        sys.unraisablehook = hook
        try:
            with on_interrupt(self.handle):
                yield
        finally:
            sys.unraisablehook = before
            self.received = False

    def fork(self) -> int:
        """Fork. A Ctrl-C meanwhile waits for `check`: callbacks at a fork would drop it and keep their locks."""
        self._forks = True
        try:
            return os.fork()
        finally:
            self._forks = False

    def check(self) -> None:
        """Raise a `KeyboardInterrupt` that was not raised, or that Python dropped."""
        if self.received:
            raise KeyboardInterrupt


interrupts = Interrupts()
"""The interrupts of this program."""


@contextmanager
def on_interrupt(handler: "Handler") -> "Iterator[None]":
    """Within this context, Ctrl-C calls the handler. If it is ignored, as in background jobs, it stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or not _is_main_thread():  # None: a handler that Python did not install
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def exiting_on_termination() -> "Iterator[None]":
    """Within this context, SIGTERM and SIGHUP raise a `SystemExit`, so that what is unfinished is removed.

    Handlers that others have installed stay.
    """
    if not _is_main_thread():
        yield
        return
    replaced = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: "FrameType | None") -> "NoReturn":
    sys.exit(128 + number)


def _is_main_thread() -> bool:
    """Whether this thread is the one that signals interrupt, and the only one that can set handlers."""
    return threading.current_thread() is threading.main_thread()
