"""What the user sees: aligned lines, a progress bar on a terminal, and the same words in the run's `log.txt`.

Everything goes to stdout, or to stderr where stdout is kept for one JSON document.
"""

import logging
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from gptlab import project
from gptlab.tracking.metrics import Row

PIPED_WIDTH = 200
"""Columns where the output is no terminal's: a table takes what it needs, and nothing else wraps."""


class Console:
    """The user's terminal (or pipe), and the log of the run once there is one."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.rich = RichConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich.width = PIPED_WIDTH
        self._log: TextIO | None = None
        handler = _NoticeHandler(self)
        logging.getLogger("gptlab").handlers = [handler]

    def log_to(self, path: Path) -> None:
        """Also append what is said from now on to a file."""
        self._log = path.open("a", encoding="utf-8")

    def say(self, line: str = "", style: str | None = None) -> None:
        """One line, or several."""
        text = printable(line)
        self.rich.print(Text(text, style=style or ""))
        if self._log:
            self._log.write(text + "\n")
            self._log.flush()

    def fact(self, label: str, value: str) -> None:
        """A labelled line."""
        self.say(f"  {label:<12}{value}")

    def notice(self, message: str) -> None:
        """Something that the user should know and need not act upon."""
        self.say(f"note: {message}", style="yellow")


class _NoticeHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.notice(record.getMessage())


def printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def shortened(value: Any) -> str:
    """The value as text; of a hash, what tells it from others."""
    text = str(value)
    return f"{text[:8]}…" if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else text


class _Rate(ProgressColumn):
    """Tokens per second over the last while."""

    def __init__(self, batch_tokens: int) -> None:
        super().__init__()
        self._batch_tokens = batch_tokens

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed * self._batch_tokens:,.0f} tokens/s" if task.speed else "… tokens/s")


class TrainingDisplay:
    """A context manager that shows steps and rows as they come; an `Observer` of the loop."""

    def __init__(self, console: Console, start: int, steps: int, batch_tokens: int) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.rich.is_terminal:
            self._bar = Progress(
                TextColumn("  step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("loss {task.fields[loss]}"),
                _Rate(batch_tokens),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console.rich,
                speed_estimate_period=60,
                transient=True,
            )
            self._task = self._bar.add_task("training", total=steps, completed=start, loss="…")

    def __enter__(self) -> "TrainingDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, loss: float | None) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            if loss is not None:
                self._bar.update(self._task, loss=f"{loss:.4f}")

    def row(self, row: Row) -> None:
        """A line for a row of metrics."""
        parts = [f"  step {row['step']:>6}"]
        if "train/loss" in row:
            parts.append(f"train loss {row['train/loss']:.4f}")
        if "val/loss" in row:
            parts.append(f"val loss {row['val/loss']:.4f} · {row['val/bpb']:.3f} bits/byte")
        if "perf/tokens_per_s" in row:
            parts.append(f"{row['perf/tokens_per_s']:,.0f} tokens/s")
        self._console.say(" · ".join(parts))


def command(*words: str) -> str:
    """A gptlab command as the user can type it, by its path where the virtual environment is not activated."""
    path = Path(sys.argv[0]).absolute()
    program = "python -m gptlab" if path.name == "__main__.py" else shlex.quote(project.shown(path))
    program = "gptlab" if shutil.which("gptlab") else program
    return " ".join([program, *map(shlex.quote, words)])


def duration(seconds: float) -> str:
    """`6 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
