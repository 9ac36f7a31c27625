"""`verifications.jsonl`: what `gptlab verify` found, one row per verification.

A row says which rows of metrics and which checkpoints were compared, by checksum. If one of them has changed since, the
row no longer says anything about the run, and is not shown.
"""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.checksums import file_digest
from gptlab.digests import ALTERED, DIGEST, document_digest, with_digest
from gptlab.errors import GptlabError
from gptlab.files import append_json_line
from gptlab.tracking.metrics import METRICS
from gptlab.untrusted import Count, open_regular, read_json_lines

VERIFICATIONS = "verifications.jsonl"
REPRODUCED = ("bitwise", "within rounding")

logger = logging.getLogger(__name__)


class StoredVerification(TypedDict):
    """A row of `verifications.jsonl`. It may have further keys."""

    # pydantic reads its configuration from this attribute; mypy allows only fields in a TypedDict.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    time: str
    verdict: Literal["bitwise", "within rounding", "differs", "damaged"]
    first: Count
    last: Count
    rows_bytes: Count
    """Length of `metrics.jsonl` up to the last row that was compared."""
    rows_xxh3: str
    """The xxh3_128 of these bytes, in hexadecimal; empty without rows."""
    digests: dict[str, dict[str, str]]
    """By step, the recorded xxh3_128 of each file of a checkpoint that was compared."""


def _mark_if_unvouched(row: Any) -> Any:
    """Mark a row whose digest is missing or wrong."""
    if not isinstance(row, dict):
        return row
    content = {key: value for key, value in row.items() if key != DIGEST}
    return content if row.get(DIGEST) == document_digest(content) else {**content, ALTERED: True}


_ROW: TypeAdapter[StoredVerification] = TypeAdapter(Annotated[StoredVerification, BeforeValidator(_mark_if_unvouched)])


def add_verification(directory: Path, facts: dict[str, Any]) -> None:
    """Append a verification to a run's directory.

    Raises:
        OSError: The file cannot be written.
    """
    row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
    append_json_line(directory / VERIFICATIONS, with_digest(row))


def read_verifications(directory: Path) -> list[StoredVerification]:
    """Return the verifications of a run, without those that have changed since they were written."""
    path = directory / VERIFICATIONS
    if not os.path.lexists(path):  # as in most runs
        return []
    try:
        rows = list(read_json_lines(path, _ROW))
    except GptlabError as error:
        logger.warning("%s; verifications of this run are not shown", error)
        return []
    intact = [row for row in rows if ALTERED not in row]
    if len(intact) < len(rows):
        logger.warning("%s has changed since it was written; what has changed is not shown", path)
    return intact


def current_verification(directory: Path) -> StoredVerification | None:
    """Return the verification that says most about a run as it is now; None if none does.

    This is the last one that failed, unless a later one of at least its steps did not. Else it is the one of the most
    steps, the later of equal ones. One that compared rows or checkpoints that have changed since does not count.
    """
    rows = read_verifications(directory)
    if not rows:
        return None
    manifests = {str(each.step): each.manifest.files for each in list_checkpoints(directory)}
    current = [row for row in rows if _has_rows(directory, row) and _has_checkpoints(manifests, row)]
    refuted = [any(_refutes(later, row) for later in current[n + 1 :]) for n, row in enumerate(current)]
    standing = [row for row, is_refuted in zip(current, refuted, strict=True) if not is_refuted]
    failed = [row for row in standing if row["verdict"] not in REPRODUCED]
    if failed:
        return failed[-1]
    return max(reversed(standing), key=_steps, default=None)


def _refutes(later: StoredVerification, row: StoredVerification) -> bool:
    """Whether a later verification says that a failed one no longer holds. Damage is looked for in all files."""
    covers = later["first"] <= row["first"] and later["last"] >= row["last"]
    failed = row["verdict"] not in REPRODUCED
    return failed and later["verdict"] != "damaged" and (row["verdict"] == "damaged" or covers)


def _steps(row: StoredVerification) -> int:
    return row["last"] - row["first"]


def describe_verification(row: StoredVerification) -> str:
    """Return the verdict and the steps that it holds for, such as `bitwise 0–300`."""
    steps = "" if row["verdict"] == "damaged" else f" {row['first']}–{row['last']}"
    return f"{row['verdict']}{steps}"


def verified_facts(row: StoredVerification | None) -> dict[str, Any] | None:
    """Return what `--json` prints of a verification."""
    return row and {key: row[key] for key in ("verdict", "first", "last", "time")}


def _has_rows(directory: Path, row: StoredVerification) -> bool:
    """Whether the rows that were compared are still there as they were."""
    if not row["rows_bytes"]:
        return True
    try:
        with open_regular(directory / METRICS) as file:
            return file_digest(file, "xxh3_128", row["rows_bytes"]) == row["rows_xxh3"]
    except (GptlabError, OSError):
        return False


def _has_checkpoints(manifests: dict[str, Any], row: StoredVerification) -> bool:
    """Whether no checkpoint that was compared is another one now. Some may have been removed."""
    return all(
        manifests[step][name].xxh3_128 == checksum
        for step, files in row["digests"].items()
        if step in manifests
        for name, checksum in files.items()
        if name in manifests[step]
    )
