"""`gptlab watch`: a live view of runs from their directories, which it only reads."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gptlab.commands.run_selection import find_runs
from gptlab.commands.watch_block import SEPARATOR, block
from gptlab.commands.watch_view import result, screen, table
from gptlab.commands.watched_run import WatchedRun
from gptlab.errors import BadInputError, GptlabError
from gptlab.interrupts import exiting_on_termination, on_interrupt
from gptlab.terminal.console import PIPED_CHART_WIDTH, Console
from gptlab.terminal.live import LiveDisplay
from gptlab.tracking.lock import HEARTBEAT, lock_holder
from gptlab.tracking.run import load_run, run_directories

PAUSE_S = 0.1
"""How soon Ctrl-C and another size of the terminal are noticed."""
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600


def check_interval(seconds: float) -> None:
    """Check what `--interval` is given.

    Raises:
        BadInputError: It is too short or too long, or no number.
    """
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise BadInputError(f"--interval must be {MIN_INTERVAL_S} to {MAX_INTERVAL_S} seconds, not {seconds:g}")


class Watch:
    """The runs that are watched."""

    def __init__(self, references: Sequence[str] = ()) -> None:
        """Find the runs.

        Args:
            references: Ids, unique prefixes of ids, directories and patterns; none for all runs in training, and
                those that will be.

        Raises:
            BadInputError: A reference selects no run, or is a prefix of several.
            GptlabError: A run that is named cannot be read.
        """
        self.all_in_training = not references
        self.runs = [WatchedRun(run) for run in find_runs(references)] if references else []
        self.unreadable: dict[Path, str] = {}
        """Why a run in training cannot be watched."""
        if self.all_in_training:
            self._find_new()

    def read(self) -> None:
        """Read what has changed, and find the runs that have begun."""
        for run in self.runs:
            run.read()
        if self.all_in_training:
            self._find_new()

    def _find_new(self) -> None:
        known = {run.run.directory for run in self.runs if not run.removed} | set(self.unreadable)
        for directory in run_directories():
            if directory not in known and _may_be_in_training(directory):
                try:
                    if lock_holder(directory):
                        self.runs.append(WatchedRun(load_run(directory)))
                except GptlabError as error:
                    self.unreadable[directory] = str(error)

    @property
    def is_over(self) -> bool:
        """Whether no run that was named is in training any more."""
        return not self.all_in_training and not any(run.is_open for run in self.runs)

    def footer(self) -> str:
        """Return the time of day, and how the runs are doing."""
        counts = Counter(run.status for run in self.runs)
        facts = [f"{count} {status}" for status, count in counts.items()] if len(self.runs) > 1 else []
        if self.runs and not counts["running"]:
            facts.append("waiting for more")
        return SEPARATOR.join([time.strftime("%H:%M:%S"), *facts])

    def document(self) -> list[dict[str, Any]]:
        """Return what `gptlab watch --json` prints."""
        now = time.time()
        return [run.document(now) for run in self.runs]


def _may_be_in_training(directory: Path) -> bool:
    """Whether a process has written its name; looking for its lock in every run would take longer."""
    try:
        return (directory / HEARTBEAT).lstat().st_size > 0
    except OSError:
        return False


def show(watch: Watch, interval_s: float, console: Console) -> None:
    """Show the runs until Ctrl-C, or until those that were named have ended; without a terminal print them once."""
    if _can_draw(console):
        if not watch.is_over:
            _follow(watch, interval_s, console)
        if watch.runs:
            draw = result if watch.is_over else table
            console.rich.print(draw(watch.runs, time.time(), console.rich.width), soft_wrap=False)
    else:
        _print(watch, console)
    for problem in watch.unreadable.values():
        console.notice(problem)


def _print(watch: Watch, console: Console) -> None:
    if not watch.runs:
        console.print("no run is running; `gptlab runs` lists all, and `gptlab watch RUN` shows one")
    for number, run in enumerate(watch.runs):
        lines = block(run, time.time(), PIPED_CHART_WIDTH)
        console.print("\n".join([*[""] * (number > 0), *(line.plain for line in lines)]))


def _can_draw(console: Console) -> bool:
    """Whether stdout is a terminal that understands control codes; FORCE_COLOR does not make a pipe one."""
    return console.rich.file.isatty() and not console.rich.is_dumb_terminal


def _follow(watch: Watch, interval_s: float, console: Console) -> None:
    """Draw the runs again and again. Signals, those of Ctrl-C and Ctrl-Z included, leave the terminal as it was."""
    received: list[int] = []
    with (
        on_interrupt(lambda number, frame: received.append(number)),
        _on_suspension(lambda number, frame: received.append(number)),
        exiting_on_termination(),
        LiveDisplay(console, interval_s, whole_screen=True) as display,
    ):
        while signal.SIGINT not in received and not watch.is_over and _can_draw(console):  # until it is closed
            if signal.SIGTSTP in received:
                received.remove(signal.SIGTSTP)
                with display.hidden():
                    os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
            if display.is_due:
                watch.read()
                display.draw(screen(watch.runs, time.time(), *console.rich.size, watch.footer()))
            time.sleep(PAUSE_S)  # files and terminals do not say when they change


@contextmanager
def _on_suspension(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context, Ctrl-Z calls the handler instead of stopping the process."""
    before = signal.signal(signal.SIGTSTP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
