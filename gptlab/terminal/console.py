"""The console: aligned lines on the terminal, and the same text in the run's `log.txt`.

Everything goes to stdout, or to stderr where stdout is reserved for one JSON document.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from gptlab.terminal.output import Output
from gptlab.terminal.text import one_line, printable

UNBOUNDED_WIDTH = 1 << 20
"""Columns if the output is not a terminal, so that no table is folded."""
PIPED_CHART_WIDTH = 80


class Console:
    """The user's terminal or pipe, and the run's log file after `log_to`."""

    def __init__(self, *, stderr: bool = False) -> None:
        """Create the console and route the warnings of gptlab's loggers to it."""
        self._output = Output("stderr" if stderr else "stdout")
        file = cast(IO[str], self._output)
        self.rich = RichConsole(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich.width = UNBOUNDED_WIDTH
        self._log: io.FileIO | None = None
        self._reported: set[str] = set()
        logging.getLogger("gptlab").handlers = [_NoticeHandler(self)]

    @property
    def chart_width(self) -> int:
        """Columns for a chart."""
        return self.rich.width if self.rich.is_terminal else PIPED_CHART_WIDTH

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """Within this context, work continues when nothing can be printed any more, as after `| head` or a hangup.

        What is printed is then dropped; the log still gets it.
        """
        self._output.surviving = True
        try:
            yield
        finally:
            self._output.surviving = False

    def log_to(self, path: Path) -> None:
        """Also append everything printed from now on to a file. If that fails, the file is incomplete."""
        try:
            self._log = path.open("ab", buffering=0)
        except OSError as error:
            self._report("log", f"{path} cannot be written: {error.strerror}")

    def print(self, line: str = "", style: str | None = None) -> None:
        """Print text of one or more lines, and append it to the log file."""
        text = printable(line)
        self.rich.print(Text(text, style=style or ""))
        if self._log:
            try:
                self._log.write(text.encode() + b"\n")
            except OSError as error:
                self._report("log", f"{self._log.name} is incomplete: {error.strerror}")
        if self._output.error is not None:
            self._report("output", f"nothing can be printed any more: {self._output.error.strerror}")

    def _report(self, what: str, message: str) -> None:
        if what not in self._reported:
            self._reported.add(what)
            self.notice(message)

    def fact(self, label: str, value: str) -> None:
        """Print a label and a value."""
        self.print(f"  {label:<12}{value}")

    def notice(self, message: str) -> None:
        """Print a note: something to know that needs no action."""
        self.print(f"note: {message}", style="yellow")

    def table(self, table: Table) -> None:
        """Print a table, folded to fit a terminal or at full width in a pipe. Tables are not logged."""
        self.rich.print(table, soft_wrap=False)


class _NoticeHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.notice(one_line(record.getMessage()))
