"""The identity of a run: everything that determines its numbers, and the hash that names it.

Only fields that differ from their defaults are hashed, so adding a field with a default renames no run.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from gptlab.digests import canonical_json
from gptlab.spec import NOT_IDENTITY, RESOLVED, SECTIONS, Experiment, Precision, Section

NUMERICS = 2
"""Revision of the arithmetic; incremented whenever the same spec would give different numbers."""


@dataclass(frozen=True)
class Identity:
    """What a run computes: its hash, which is part of the run's id, and the content that is hashed."""

    name: str
    hash: str
    """The first 8 hexadecimal digits of the sha256 of `content`."""
    content: dict[str, Any]
    """Numerics revision, precision, hashes of text and tokenizer, and the fields that differ from their defaults."""

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
) -> Identity:
    """Return the identity of an experiment with a resolved precision and text.

    `initial_weights_sha256` is None unless the run starts from another run's weights, and `branch` unless it continues
    from another run's checkpoint (see `records.Branch.identity`).
    """
    content = {
        "numerics": NUMERICS,
        "precision": precision,
        "text_sha256": text_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        **({"initial_weights_sha256": initial_weights_sha256} if initial_weights_sha256 else {}),
        **({"branch": branch} if branch else {}),
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
