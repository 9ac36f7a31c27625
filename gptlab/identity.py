"""The identity of a run: everything that determines its numbers, and the hash that names it.

- Only fields that differ from their defaults are hashed, so adding a field with a default renames no run.
- The code is part of it as a fingerprint: what a small training with this code computes. So an edit that changes the
  arithmetic starts another run, and a refactoring does not.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from gptlab.digests import canonical_json
from gptlab.spec import NOT_IDENTITY, RESOLVED, SECTIONS, Experiment, Precision, Section

NUMERICS = 2
"""Revision of what only rounding shows; incremented when the same spec gives other numbers with equal fingerprints."""

DIGITS = 8
"""Significant digits of a fingerprint's numbers that enter its hash. Environments agree in about fifteen."""
UNTRAINED = "loss before training"
"""Name of the number that only the model determines, not the optimizer."""
UNKNOWN = "unknown"
"""The sha256 of a file that was changed after the process had imported it."""
SMALLEST = 1e-12
"""Smaller numbers count as zero: they are rounding errors."""


class Fingerprint(BaseModel):
    """What an experiment's code computes, from a small training in float64 (see `gptlab.training.fingerprint`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: dict[str, FiniteFloat]
    """Losses, gradient norms and other results by name, unrounded."""
    code: dict[str, str]
    """Hashes of the functions that the small training cannot check, by `module:function`."""
    files: dict[str, str]
    """The sha256 of each file of code involved, by its path in the project, or `unknown`. Not hashed."""

    @property
    def hash(self) -> str:
        """The sha256 of the rounded numbers and of the code, in hexadecimal."""
        numbers = {name: _round(value) for name, value in self.numbers.items()}
        return hashlib.sha256(canonical_json([numbers, self.code]).encode()).hexdigest()

    def same_model(self, other: "Fingerprint") -> bool:
        """Return whether a model with given weights has the same loss with the code of both."""
        here, there = (
            _round(each.numbers.get(UNTRAINED, math.inf)) for each in (self, other)
        )  # left out if not finite
        hashes = [{name: value for name, value in each.code.items() if ".model." in name} for each in (self, other)]
        return here == there and hashes[0] == hashes[1]

    def differing_files(self, other: "Fingerprint") -> list[str]:
        """Return the files that differ, are unknown or that only one of them has, in alphabetical order."""
        names = sorted(self.files.keys() | other.files.keys())
        pairs = {name: {self.files.get(name, UNKNOWN), other.files.get(name, UNKNOWN)} for name in names}
        return [name for name, versions in pairs.items() if len(versions) > 1 or UNKNOWN in versions]


def _round(value: float) -> str:
    return f"{value:.{DIGITS - 1}e}" if abs(value) >= SMALLEST else "0"


@dataclass(frozen=True)
class Identity:
    """What a run computes: its hash, which is part of the run's id, and the content that is hashed."""

    name: str
    hash: str
    """The first 8 hexadecimal digits of the sha256 of `content`."""
    content: dict[str, Any]
    """Numerics revision, precision, hashes of text, tokenizer and code, and fields that differ from their defaults."""

    def run_id(self, seed: int) -> str:
        """Return `NAME-HASH8-sSEED`."""
        return f"{self.name}-{self.hash}-s{seed}"


def identify(
    experiment: Experiment,
    *,
    precision: Precision,
    text_sha256: str,
    tokenizer_sha256: str,
    initial_weights_sha256: str | None = None,
    branch: dict[str, Any] | None = None,
    fingerprint: Fingerprint | None = None,
) -> Identity:
    """Return the identity of an experiment.

    Args:
        experiment: The experiment.
        precision: Its precision on the device.
        text_sha256: Of its text.
        tokenizer_sha256: Of its tokenizer.
        initial_weights_sha256: None unless the run starts from another run's weights.
        branch: None unless the run continues from another run's checkpoint; see `records.Branch.identity`.
        fingerprint: Of its code; None only for a run of an earlier version of gptlab.
    """
    content = {
        "numerics": NUMERICS,
        "precision": precision,
        "text_sha256": text_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        **({"initial_weights_sha256": initial_weights_sha256} if initial_weights_sha256 else {}),
        **({"branch": branch} if branch else {}),
        **({"fingerprint": fingerprint.hash} if fingerprint else {}),
        **identity_fields(experiment, exclude_defaults=True),
    }
    return Identity(experiment.name, hash_of(content), content)


def hash_of(content: dict[str, Any]) -> str:
    """Return the first 8 hexadecimal digits of the sha256 of an identity's content."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:8]


def identity_fields(experiment: Experiment, *, exclude_defaults: bool = False) -> dict[str, dict[str, Any]]:
    """Return the fields that change what is computed, by section."""
    return {name: _identity_fields(getattr(experiment, name), exclude_defaults) for name in SECTIONS}


def _identity_fields(section: Section, exclude_defaults: bool) -> dict[str, Any]:
    fields = {}
    for name, value in section.model_dump(mode="json", exclude_defaults=exclude_defaults).items():
        if not {NOT_IDENTITY, RESOLVED} & set(type(section).model_fields[name].metadata):
            nested = getattr(section, name)
            fields[name] = _identity_fields(nested, exclude_defaults) if isinstance(nested, Section) else value
    return fields
