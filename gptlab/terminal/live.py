"""What is drawn again and again on a terminal, as long as something runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.live import Live

from gptlab.terminal.console import Console


class LiveDisplay:
    """A context manager that shows something on a terminal, and nothing elsewhere. At the end it is wiped out."""

    def __init__(self, console: Console, interval_s: float, *, whole_screen: bool = False) -> None:
        """Create the display.

        Args:
            console: Where to draw.
            interval_s: Seconds between two drawings.
            whole_screen: Whether to use the whole terminal, whose content is restored at the end, instead of the
                lines below what has been printed.
        """
        self._rich, self._interval_s = console.rich, interval_s
        self.is_shown = self._rich.is_terminal
        """Whether there is a terminal to draw on."""
        self._live = Live(console=self._rich, auto_refresh=False, transient=True, screen=whole_screen)
        self._drawn = -interval_s  # at once
        self._size = self._rich.size

    @property
    def is_due(self) -> bool:
        """Whether it is time to draw again: the interval is over, or the terminal has another size."""
        return self.is_shown and (time.monotonic() - self._drawn >= self._interval_s or self._rich.size != self._size)

    def draw(self, content: RenderableType) -> None:
        """Replace what is shown."""
        self._drawn, self._size = time.monotonic(), self._rich.size
        self._live.update(content, refresh=True)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within this context, the terminal is as it was before."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()
            self._drawn = -self._interval_s

    def __enter__(self) -> Self:
        if self.is_shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
