"""The columns of a table of runs in training, and which of them a small terminal shows."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rich.text import Text

from gptlab.terminal.tables import Column

STYLES = {"running": "cyan", "complete": "green", "interrupted": "yellow", "diverged": "red", "failed": "red"}
OTHER_STYLE = "dim"


class InTraining(Protocol):
    """A run as a live table shows it."""

    @property
    def status(self) -> str:
        """Such as `running`."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def steps(self) -> int:
        """Total number of steps."""

    @property
    def loss(self) -> float | None:
        """The newest training loss."""


RunT = TypeVar("RunT", bound=InTraining)


def status_text(status: str) -> Text:
    """Return a status in its color."""
    return Text(status, STYLES.get(status, OTHER_STYLE))


def format_loss(loss: float | None) -> str:
    """Return a loss in nats per token as text."""
    return "–" if loss is None else f"{loss:.4f}"


def progress_columns(runs: Sequence[InTraining]) -> list[Column]:
    """Return the columns status, step and train loss."""
    return [
        Column("status", [status_text(run.status) for run in runs]),
        Column("step", [f"{run.step} of {run.steps}" for run in runs], right=True, rank=1),
        Column("train loss", [format_loss(run.loss) for run in runs], right=True, rank=1),
    ]


def those_that_fit(runs: Sequence[RunT], space: int) -> list[RunT]:
    """Return at most `space` runs. If there are more, those in training come first."""
    if len(runs) <= space:
        return list(runs)
    return sorted(runs, key=lambda run: run.status != "running")[:space]
