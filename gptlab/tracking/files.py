"""Writing so that what was written survives: whole files, flushed to the disk."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError


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
    with staging.open("wb") as file:
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


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file; none where there is no file. A torn last line, cut off by a crash, is left out.

    Raises:
        GptlabError: Another line is not a JSON object; the message names file and line.
    """
    if not path.exists():
        return
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise GptlabError(f"{path}:{number}: this line is not a JSON object; mend or remove it")
        yield row


def torn_bytes(path: Path) -> int:
    """How many bytes a crash left after the last whole line."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    return len(content) - (content.rfind(b"\n") + 1)
