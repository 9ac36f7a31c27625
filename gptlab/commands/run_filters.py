"""Which runs `gptlab runs` lists, and in which order."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from gptlab.commands.run_settings import setting
from gptlab.errors import BadInputError
from gptlab.spec import Experiment, fields_of
from gptlab.tracking.history import Status
from gptlab.tracking.records import RunRecord
from gptlab.validation import did_you_mean

SORTABLE = {
    "run": "run",
    "status": "status",
    "step": "step",
    "val_loss": "val_loss",
    "bits_per_byte": "val_bpb",
    "age": "created",
    "trained_for": "elapsed_s",
    "disk": "disk_bytes",
}
"""What `--sort` takes besides the fields of a spec, and the key in a run's facts."""


@dataclass(frozen=True)
class Filters:
    """What a run must be to be listed. The defaults select every run."""

    name: str | None = None
    """A pattern for the experiment's name, such as `tiny-*`."""
    status: Status | None = None
    tags: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    """Values of the spec by dotted key."""

    def accept_name(self, name: str) -> bool:
        """Return whether an experiment's name passes."""
        return self.name is None or fnmatchcase(name, self.name)

    def accept_record(self, record: RunRecord) -> bool:
        """Return whether a run's record passes."""
        return self.accept_name(record.spec.name) and all(
            setting(record, key) == value for key, value in self.where.items()
        )

    def accept_facts(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a run's status and tags pass."""
        return self.status in {None, facts["status"]} and set(self.tags) <= set(facts["tags"])

    @property
    def active(self) -> bool:
        """Whether there is a filter at all."""
        return self != Filters()


def check_sort_key(key: str) -> None:
    """Check what `--sort` is given.

    Raises:
        BadInputError: It is neither a column nor a field of a spec.
    """
    known = [*SORTABLE, *(name for name, _ in fields_of(Experiment))]
    if key not in known:
        raise BadInputError(
            f"--sort is '{key}'{did_you_mean(key, known) or ';'} choose {', '.join(SORTABLE)}, or a field of a spec "
            "such as train.learning_rate"
        )


def sort_value(key: str, facts: Mapping[str, Any], record: RunRecord) -> tuple[int, Any]:
    """Return a run's value to sort by: numbers, then texts, then numbers that are not finite, then no value."""
    value = facts[SORTABLE[key]] if key in SORTABLE else setting(record, key)
    if key == "age":
        value = -datetime.fromisoformat(value).timestamp()  # the youngest first
    if value is None:
        return (3, 0)
    if isinstance(value, int | float):
        return (0 if math.isfinite(value) else 2, value)
    return (1, natural_order(str(value)))


def natural_order(text: str) -> list[tuple[str, int]]:
    """Return a key that sorts numbers in a text by their value: `s2` before `s10`."""
    return [(word, int(number or -1)) for word, number in re.findall(r"(\D*)(\d*)", text)]
