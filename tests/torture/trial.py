"""One trial: its number, its random choices and its folder."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

KINDS = ("kills", "mutations", "full_disk", "concurrency", "matrix", "startup")
"""The kinds of faults; each has a module."""


class PromiseBrokenError(Exception):
    """A promise was broken."""


class SkipError(Exception):
    """The trial needs what this machine does not have; the text says what."""


@dataclass(frozen=True)
class Trial:
    """What a trial is given. It may write only below its folder."""

    seed: int
    number: int
    turn: int
    """How many trials of this kind have smaller numbers."""
    folder: Path

    def random(self) -> Random:
        """Return the trial's random numbers, the same each time."""
        return Random(f"{self.seed}:{self.number}")


def require(condition: object, message: str) -> None:
    """Fail with a message unless a condition holds."""
    if not condition:
        raise PromiseBrokenError(message)
