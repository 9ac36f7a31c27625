"""Check `metrics.jsonl` against the lengths and checksums that manifests and ends of attempts record.

A run that was killed has rows after the newest checkpoint that nothing vouches for. They are unverified, not damaged.
"""

import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from gptlab.checkpoints.manifest import LoopState, Manifest
from gptlab.checksums import file_digest
from gptlab.errors import GptlabError
from gptlab.tracking.metrics import METRICS, ROW
from gptlab.untrusted import MAX_LINE_BYTES, complete_bytes, open_regular, parse_row

MISSING = "has lost rows: it is missing"


@dataclass(frozen=True)
class RecordedRows:
    """The rows of `metrics.jsonl` as a manifest or the end of an attempt recorded them."""

    bytes: int
    xxh3_128: str
    damaged_to: int | None
    """See `LoopState.metrics_damaged_to`."""
    complete: bool
    """Whether no row was written later."""
    step: int | None = None
    """Step of the last row; None if it is not recorded."""


def find_damage(directory: Path, recorded: RecordedRows) -> str | None:
    """Return how a run's rows differ from what was recorded, or None if they do not.

    The file is read once per state (see `gptlab.checksums`).

    Raises:
        GptlabError: The file cannot be read.
    """
    path = directory / METRICS
    try:
        with open_regular(path) as file:
            problem = _find_change(file, recorded.bytes, recorded.xxh3_128)
            if problem is None and recorded.complete and complete_bytes(file) > recorded.bytes:
                problem = "is damaged: rows were added after the end of the last attempt"
            if problem is None and recorded.step not in (None, _step_before(file, recorded.bytes)):
                problem = f"does not end at step {recorded.step}, as recorded at the end of the last attempt"
    except FileNotFoundError:
        problem = MISSING if recorded.bytes else None
    if problem is None and recorded.damaged_to is not None:
        problem = f"was damaged when an attempt resumed: rows up to step {recorded.damaged_to} are not reliable"
    return problem and f"{path} {problem}"


def find_rows_problem(directory: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with the rows up to a checkpoint, or None if training can resume after them."""
    path, progress = directory / METRICS, manifest.progress
    size = progress.metrics_bytes
    try:
        with open_regular(path) as file:
            problem = _find_change(file, size, progress.metrics_xxh3)
            if problem is None and _step_before(file, size) != last_row_step(manifest.step, progress):
                problem = f"has no row of the right step that ends at byte {size:,}, as the manifest says"
    except FileNotFoundError:
        problem = MISSING if size else None
    except GptlabError as error:
        return str(error)
    return problem and f"{path} {problem}"


def last_row_step(step: int, progress: LoopState) -> int:
    """Return the step of the last row on the grid at a checkpoint; 0 if there is none."""
    return step - progress.steps_since_row


def end_of_rows(directory: Path, step: int) -> int:
    """Return the length of `metrics.jsonl` up to its last row of at most this step. Lines that are no rows count.

    Raises:
        GptlabError: A line is too long.
    """
    end = position = 0
    try:
        with open_regular(directory / METRICS) as file:
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                position += len(line)
                try:
                    row = parse_row("", line, ROW)
                except GptlabError:
                    continue
                if row["step"] <= step:
                    end = position
    except FileNotFoundError:
        pass
    return end


def _find_change(file: BufferedReader, size: int, xxh3_128: str | None) -> str | None:
    found = os.fstat(file.fileno()).st_size
    if found < size:
        return f"has lost rows: it has {found:,} of {size:,} bytes"
    if xxh3_128 and file_digest(file, "xxh3_128", size) != xxh3_128:
        return "is damaged: its rows have changed since they were written"
    return None


def _step_before(file: BufferedReader, end: int) -> int | None:
    """Return the step of the row that ends at byte `end`; 0 at the file's beginning, None if no row ends there."""
    if end == 0:
        return 0
    file.seek(max(end - MAX_LINE_BYTES, 0))
    *_, line, rest = (b"\n" + file.read(min(end, MAX_LINE_BYTES))).split(b"\n")
    try:
        step: int = parse_row(str(file.name), line, ROW)["step"]
    except GptlabError:
        return None
    return None if rest else step
