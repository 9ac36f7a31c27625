"""What a verification found."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from gptlab.errors import EXIT_FAILED

Verdict = Literal["bitwise", "within rounding", "differs", "damaged"]


@dataclass(frozen=True)
class Damage:
    """A file of a run that is not as it was written."""

    file: str
    """Its path in the run's directory."""
    problem: str

    def __str__(self) -> str:
        """The file and what is wrong with it."""
        return f"{self.file} {self.problem}"


class _Difference:
    """What both kinds of differences can say of themselves."""

    difference: float
    bound: float

    @property
    def excess(self) -> float:
        """The difference in units of the bound."""
        if not self.bound:
            return math.inf if self.difference else 0.0
        return self.difference / self.bound

    def document(self) -> dict[str, Any]:
        """Return this part of what `gptlab verify --json` prints."""
        return vars(self)


@dataclass(frozen=True)
class ValueDifference(_Difference):
    """A value in a row of metrics that the replay did not reproduce."""

    step: int
    column: str
    recorded: Any
    replayed: Any
    difference: float
    """Absolute; infinite if one side has no number."""
    bound: float = 0.0
    """The largest difference that rounding explains."""


@dataclass(frozen=True)
class TensorDifference(_Difference):
    """A tensor of a checkpoint that the replay did not reproduce."""

    step: int
    file: str
    tensor: str
    difference: float
    """The norm of the difference over the tensor's norm; infinite if the tensors cannot be compared."""
    bound: float = 0.0
    """The largest difference that rounding explains."""


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    run: str
    verdict: Verdict
    first: int
    """The step that the replay started from."""
    last: int
    """The step that it ended at."""
    damage: tuple[Damage, ...] = ()
    """Files that are not as they were written. Then nothing is replayed."""
    files: int = 0
    """Files that are as they were written."""
    rows: int = 0
    """Rows of metrics that were compared."""
    rows_bytes: int = 0
    """Length of `metrics.jsonl` up to the last of them."""
    rows_xxh3: str = ""
    """The checksum of these bytes."""
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints that were compared."""
    other_headers: tuple[int, ...] = ()
    """Steps whose tensors are equal in every bit, in files with another header, as another version may write it."""
    digests: dict[int, dict[str, str]] = field(default_factory=dict)
    """By step, the recorded checksum of each file that was compared."""
    first_value: ValueDifference | None = None
    """The first value that differs, or that differs by more than the bound if the verdict is `differs`."""
    largest_value: ValueDifference | None = None
    """The value that is farthest from the replay's, in units of the bound."""
    first_tensor: TensorDifference | None = None
    """The first tensor that differs; see `first_value`."""
    largest_tensor: TensorDifference | None = None
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What differs between the recorded environment and the replay's: both values by name."""
    code: tuple[str, ...] = ()
    """Sentences on what differs in the code."""
    notes: tuple[str, ...] = ()
    """What else the reader should know."""
    conditions: str = ""
    """The device and the threads of the replay."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 if the run was reproduced, else 1."""
        return 0 if self.verdict in {"bitwise", "within rounding"} else EXIT_FAILED

    def document(self) -> dict[str, Any]:
        """Return what `gptlab verify --json` prints."""
        differences = ("first_value", "largest_value", "first_tensor", "largest_tensor")
        return {
            "run": self.run,
            "verdict": self.verdict,
            "first": self.first,
            "last": self.last,
            "damage": [vars(damage) for damage in self.damage],
            "files": self.files,
            "rows": self.rows,
            "checkpoints": list(self.checkpoints),
            "other_headers": list(self.other_headers),
            **{name: found.document() if (found := getattr(self, name)) else None for name in differences},
            "environment": {key: {"recorded": a, "replayed": b} for key, (a, b) in self.environment.items()},
            "code": list(self.code),
            "notes": list(self.notes),
            "conditions": self.conditions,
            "seconds": self.seconds,
        }
