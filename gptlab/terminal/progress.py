"""The progress bar of training."""

from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from gptlab.terminal.console import Console


class StepProgress:
    """A context manager that shows steps, loss, tokens/s and ETA on a terminal, and nothing elsewhere."""

    def __init__(self, console: Console, start: int, steps: int, batch_tokens: int) -> None:
        """Create the bar.

        Args:
            console: Where to draw it.
            start: Steps done before.
            steps: Total number of steps.
            batch_tokens: Tokens per step.
        """
        self._bar = Progress(
            TextColumn("  step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            _TokensPerSecond(batch_tokens),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console.rich,
            speed_estimate_period=60,
            transient=True,
            disable=not console.rich.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start, loss="…")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float | None) -> None:
        """Move the bar to a step. If the loss is None, the last one stays displayed."""
        self._bar.update(self._task, completed=step)
        if loss is not None:
            self._bar.update(self._task, loss=f"{loss:.4f}")


class _TokensPerSecond(ProgressColumn):
    def __init__(self, batch_tokens: int) -> None:
        super().__init__()
        self._batch_tokens = batch_tokens

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed * self._batch_tokens:,.0f} tokens/s" if task.speed else "… tokens/s")
