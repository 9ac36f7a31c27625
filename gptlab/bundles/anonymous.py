"""The record of a run without paths of the machine that it was made on, which can name its user.

A run's identity does not contain paths, so the record stays valid and the run keeps its id.
"""

from pathlib import PurePosixPath
from typing import Any

from gptlab.tracking.records import RunRecord


def without_paths(record: RunRecord) -> RunRecord:
    """Return the record with each path shortened to its last part."""
    data = record.spec.data.model_copy(
        update={"text": _last_part(record.spec.data.text), "tokenizer": _last_part(record.spec.data.tokenizer)}
    )
    text = record.text.model_copy(update={"source": _last_part(record.text.source), "path": _root(record.text.path)})
    update: dict[str, Any] = {"spec": record.spec.model_copy(update={"data": data}), "text": text}
    for field in ("initial_weights", "branch", "imported_weights"):
        if start := getattr(record, field):
            update[field] = start.model_copy(update={"path": _root(start.path)})
    return record.model_copy(update=update)


def _last_part(path: str) -> str:
    """Return the last part of a path, and a name as it is."""
    return PurePosixPath(path).name or path


def _root(path: str) -> str:
    """Return the last part of an absolute path as an absolute path."""
    return f"/{PurePosixPath(path).name}"
