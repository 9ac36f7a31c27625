"""Read the files of a run, which may be untrusted.

A run may come from an archive that someone else made, so its files are only read as data. `check_tree` rejects links,
pipes and devices. The readers follow no link, block on no pipe, bound the memory that they use and validate every
value. Errors name the file.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from gptlab.errors import GptlabError
from gptlab.validation import explain

MAX_DOCUMENT_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
MAX_ROWS_BYTES = 1 << 30
MAX_EXPLANATION = 300
"""Characters of an error message that quote an untrusted file."""
MIN_ROW_COST = 512
"""Bytes that a row counts as at least, because even the shortest row takes that much memory."""

NEVER_WRITTEN_IN_PLACE = ("checkpoints", "wandb")
"""Folders of a run whose existing files are replaced or left alone, so that a hard link to one does no harm."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of steps, tokens or bytes that fits in 64 bits."""

Document = TypeVar("Document", bound=BaseModel)
Row = TypeVar("Row")

_ANY_ROW: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


def check_tree(directory: Path) -> None:
    """Check that a run's directory holds only regular files and folders.

    W&B's own links are allowed: they stay inside `wandb/`, except for one that is never opened.

    Raises:
        GptlabError: The directory holds a link, pipe, socket or device; the message names it.
    """
    if not directory.name.isprintable():
        raise GptlabError(f"the name of {str(directory)!a} is not printable; rename it")
    if directory.is_symlink():
        raise GptlabError(f"{directory} is a symbolic link; pass the directory that it points to")
    for entry in _entries(directory):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            continue
        path = Path(entry.path)
        with suppress(FileNotFoundError):  # removed in the meantime
            if not stat.S_ISLNK(path.lstat().st_mode):
                raise GptlabError(f"{path} is neither a file nor a folder; remove it")
            if not _is_wandb_link(path, directory):
                raise GptlabError(f"{path} is a symbolic link, which a run must not contain; remove it")


def check_no_hard_links(directory: Path) -> None:
    """Check that no file that training appends to or overwrites has a hard link, which may be outside the run.

    Raises:
        GptlabError: A file has a hard link; the message names it.
    """
    for entry in _entries(directory):
        path = Path(entry.path)
        if path.relative_to(directory).parts[0] in NEVER_WRITTEN_IN_PLACE or entry.is_dir(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError):
            if path.lstat().st_nlink > 1:
                raise GptlabError(f"{path} has a hard link elsewhere; copy the run with cp -r and resume the copy")


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a directory, at any depth. Entries that disappear meanwhile are skipped."""
    folders = [str(directory)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    yield entry
        except FileNotFoundError:
            continue
        except OSError as error:
            raise GptlabError(f"{folder} cannot be read: {error.strerror}") from error


def _is_wandb_link(link: Path, directory: Path) -> bool:
    target = link.readlink()
    inward = not target.is_absolute() and ".." not in target.parts
    return link.relative_to(directory).parts[0] == "wandb" and (inward or link.name == "debug-core.log")


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: The file does not exist.
        GptlabError: It is not a regular file or cannot be read; the message names it.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # checked first: opening a device can have side effects
            raise GptlabError(f"{path} is not a regular file")
        with open(path, "rb", opener=_open_without_following) as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GptlabError(f"{path} cannot be read: {error.strerror}") from error


def _open_without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_document(path: Path, kind: type[Document]) -> Document:
    """Read a JSON file as a pydantic model.

    Raises:
        FileNotFoundError: The file does not exist.
        GptlabError: The content is too long or invalid; the message names the file.
    """
    with open_regular(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise GptlabError(f"{path} is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise GptlabError(f"{path} is damaged: {explain(error):.{MAX_EXPLANATION}}") from None


def read_json_lines(path: Path, kind: TypeAdapter[Row] = _ANY_ROW) -> Iterator[Row]:
    """Yield the rows of a short JSON Lines file; none if the file does not exist. A torn last line is skipped.

    Raises:
        GptlabError: A line is invalid, or the file is longer than `MAX_ROWS_BYTES`; the message names file and line.
    """
    remaining = MAX_ROWS_BYTES
    for number, (row, size) in enumerate(read_json_lines_from(path, 0, kind), start=1):
        remaining -= max(size, MIN_ROW_COST)
        if remaining < 0:
            raise GptlabError(f"{path}:{number}: the file is too long to read")
        yield row


def read_json_lines_from(path: Path, start: int, kind: TypeAdapter[Row]) -> Iterator[tuple[Row, int]]:
    """Yield the rows from byte `start` on, each with its length in bytes. Errors count lines from there.

    Raises:
        GptlabError: A line is invalid or too long; the message names file and line.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            for number in count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise GptlabError(f"{path}:{number}: the line is too long to read")
                if not line.endswith(b"\n"):
                    return
                yield parse_row(f"{path}:{number}", line, kind), len(line)
    except FileNotFoundError:
        return


def parse_row(where: str, line: bytes, kind: TypeAdapter[Row]) -> Row:
    """Parse one line of a JSON Lines file.

    Raises:
        GptlabError: The line is invalid; the message begins with `where`.
    """
    try:
        return kind.validate_json(line)
    except ValidationError as error:
        raise GptlabError(f"{where}: {explain(error):.{MAX_EXPLANATION}}; fix or remove this line") from None


def lines_backwards(file: BufferedReader) -> Iterator[bytes]:
    """Yield the complete lines of an open file, the last one first. A torn last line is skipped.

    Raises:
        GptlabError: A line is too long.
    """
    position, rest, torn = file.seek(0, os.SEEK_END), b"", True
    while position:
        start = max(position - MAX_LINE_BYTES, 0)
        file.seek(start)
        rest, *lines = (file.read(position - start) + rest).split(b"\n")
        if torn and lines:
            lines.pop()
            torn = False
        yield from reversed(lines)
        if len(rest) > MAX_LINE_BYTES:
            raise GptlabError(f"{file.name} has a line that is too long to read")
        position = start
    if not torn:
        yield rest


def torn_bytes(path: Path) -> int:
    """Return the number of bytes after the last complete line: a line that a crash tore.

    Raises:
        GptlabError: There are more than `MAX_LINE_BYTES`.
    """
    try:
        with open_regular(path) as file:
            return file.seek(0, os.SEEK_END) - complete_bytes(file)
    except FileNotFoundError:
        return 0


def complete_bytes(file: BufferedReader) -> int:
    """Return the length of an open file up to the end of its last complete line.

    Raises:
        GptlabError: More than `MAX_LINE_BYTES` follow.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - MAX_LINE_BYTES - 1, 0))
    tail = file.read(MAX_LINE_BYTES + 1)
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn > MAX_LINE_BYTES:
        raise GptlabError(f"{file.name} ends with a line that is too long to read")
    return size - torn
