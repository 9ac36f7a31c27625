"""Writing so that what was written survives: whole files, flushed to the disk."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab.tracking.reading import torn_bytes


def fsync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power failure."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file's content at once and for good."""
    staging = path.with_name(f".{path.name}.tmp")
    staging.unlink(missing_ok=True)
    with staging.open("xb") as file:  # never what is there under that name, nor what that leads to
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
    fsync_directory(path.parent)


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to a JSON Lines file, on the disk when this returns."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    torn = torn_bytes(path)
    with path.open("ab") as file:
        if torn:  # half a line, left by a crash, must not swallow this one
            file.truncate(file.tell() - torn)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
