"""The console: aligned lines on the terminal, and the same text in the run's `log.txt`.

Everything goes to stdout, or to stderr where stdout is reserved for one JSON document.
"""

import logging
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from gptlab.terminal.text import printable

UNBOUNDED_WIDTH = 1 << 20
"""Columns if the output is not a terminal, so that no table is folded."""
PIPED_CHART_WIDTH = 80


class Console:
    """The user's terminal or pipe, and the run's log file after `log_to`."""

    def __init__(self, *, stderr: bool = False) -> None:
        """Create the console and route the warnings of gptlab's loggers to it."""
        self.rich = RichConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich.width = UNBOUNDED_WIDTH
        self._log: TextIO | None = None
        logging.getLogger("gptlab").handlers = [_NoticeHandler(self)]

    @property
    def chart_width(self) -> int:
        """Columns for a chart."""
        return self.rich.width if self.rich.is_terminal else PIPED_CHART_WIDTH

    def log_to(self, path: Path) -> None:
        """Also append everything printed from now on to a file."""
        self._log = path.open("a", encoding="utf-8")

    def print(self, line: str = "", style: str | None = None) -> None:
        """Print text of one or more lines, and append it to the log file."""
        text = printable(line)
        self.rich.print(Text(text, style=style or ""))
        if self._log:
            self._log.write(text + "\n")
            self._log.flush()

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
        self._console.notice(record.getMessage())
