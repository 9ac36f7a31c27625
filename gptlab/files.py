"""Write files so that a crash leaves the old content or the new one, never a mixture."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptlab.errors import GptlabError
from gptlab.untrusted import torn_bytes


def make_directory(path: Path) -> None:
    """Create a directory and its parents if they do not exist.

    Raises:
        GptlabError: It cannot be created; the message names it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptlabError(f"{path} cannot be created: {error.strerror}") from error


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Hold a lock on a directory, which adds no file to it. Waits until no other process holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems can lock files only
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, *, durable: bool = False, make_parents: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it when the context ends without an error.

    Args:
        path: The file to replace.
        durable: Flush the content and the directory entry to the disk, so that a power failure cannot undo the write.
        make_parents: Create the parent directories if they do not exist.

    Yields:
        The temporary file, open for writing.
    """
    if make_parents:
        make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # "x" opens no existing file and follows no link
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, str(temporary)}:
            error.filename = str(path)  # the file that the user knows
        raise
    if durable:
        fsync_directory(path.parent)


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file's content atomically. It is on the disk when this returns."""
    with atomic_write(path, durable=True) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON Lines file. It is on the disk when this returns."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    torn = torn_bytes(path)
    with path.open("ab") as file:
        if torn:  # a crash left half a line, which would corrupt this one
            file.truncate(file.tell() - torn)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def remove_temporary_files(directory: Path) -> None:
    """Remove the temporary files of killed processes. No other process may be writing to the directory."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


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
