"""Reading a run's files, any of which may be a stranger's: plain files only, in bounded memory, every value typed.

A run may have come out of somebody's archive. What is in it is data and stays data: `check_tree` sees that nothing in
its directory leads elsewhere or acts when it is opened, and the functions below it follow no link, wait for no pipe and
believe no length. What does not fit is an error that names the file.
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

MAX_DOCUMENT_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
MAX_ROWS_BYTES = 1 << 30
ROW_COST = 512
"""Bytes that a row of a file counts for at least: in memory the shortest takes as much."""

NEVER_WRITTEN_IN_PLACE = ("checkpoints", "wandb")

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""Steps, tokens, bytes: what is counted, and fits 64 bits."""

Document = TypeVar("Document", bound=BaseModel)
Row = TypeVar("Row")

_ANY_ROW: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


def check_tree(directory: Path) -> None:
    """See that a run's directory holds plain files and folders only.

    W&B's own links may stay: they do not lead out of `wandb/`, but for one that nobody opens.

    Raises:
        GptlabError: It holds a link, pipe, socket or device; the message names it.
    """
    if not directory.name.isprintable():
        raise GptlabError(f"the name of {str(directory)!a} cannot be printed; rename it")
    if directory.is_symlink():
        raise GptlabError(f"{directory} is a link; give the directory that it leads to")
    for entry in _entries(directory):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            continue
        path = Path(entry.path)
        with suppress(FileNotFoundError):  # it went away meanwhile
            if not stat.S_ISLNK(path.lstat().st_mode):
                raise GptlabError(f"{path} is neither a file nor a folder; remove it")
            if not _stays_in_wandb(path, directory):
                raise GptlabError(f"{path} is a link, and nothing in a run may lead elsewhere; remove it")


def check_files_are_its_own(directory: Path) -> None:
    """See that no file which is written to in place has another name, perhaps outside of the run.

    Raises:
        GptlabError: One has; the message names it.
    """
    for entry in _entries(directory):
        path = Path(entry.path)
        if path.relative_to(directory).parts[0] in NEVER_WRITTEN_IN_PLACE or entry.is_dir(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError):
            if path.lstat().st_nlink > 1:
                raise GptlabError(f"{path} has another name elsewhere (a hard link); go on with a copy made by: cp -r")


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """All that lies below a directory, however deep; what goes away meanwhile is passed over."""
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


def _stays_in_wandb(link: Path, directory: Path) -> bool:
    target = link.readlink()
    inward = not target.is_absolute() and ".." not in target.parts
    return link.relative_to(directory).parts[0] == "wandb" and (inward or link.name == "debug-core.log")


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A context with a plain file that is open for reading.

    Raises:
        FileNotFoundError: There is none.
        GptlabError: It is something else, or cannot be read; the message names it.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # looked at first: to open a device may do something
            raise GptlabError(f"{path} is not a plain file")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GptlabError(f"{path} cannot be read: {error.strerror}") from error


def read_document(path: Path, kind: type[Document]) -> Document:
    """The JSON document that a file is.

    Raises:
        FileNotFoundError: There is none.
        GptlabError: It is something else; the message names it.
    """
    with opened(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise GptlabError(f"{path} is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise GptlabError(f"{path} is damaged: {first_of(error)}") from None


def read_json_lines(path: Path, kind: TypeAdapter[Row] = _ANY_ROW) -> Iterator[Row]:
    """The rows of a JSON Lines file; none where there is no file. A torn last line, cut off by a crash, is left out.

    Raises:
        GptlabError: Another line is not such a row, or there are too many; the message names file and line.
    """
    for row, _ in read_json_lines_from(path, 0, kind):
        yield row


def read_json_lines_from(path: Path, start: int, kind: TypeAdapter[Row]) -> Iterator[tuple[Row, int]]:
    """The rows from a byte of the file on, each with its length; line numbers in messages count from there."""
    room = MAX_ROWS_BYTES
    try:
        with opened(path) as file:
            file.seek(start)
            for number in count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                room -= max(len(line), ROW_COST)
                if len(line) > MAX_LINE_BYTES or room < 0:
                    raise GptlabError(f"{path}:{number}: the line or the file is too long to be read")
                if not line.endswith(b"\n"):
                    return
                yield _row(path, number, line, kind), len(line)
    except FileNotFoundError:
        return


def _row(path: Path, number: int, line: bytes, kind: TypeAdapter[Row]) -> Row:
    try:
        return kind.validate_json(line)
    except ValidationError as error:
        raise GptlabError(f"{path}:{number}: {first_of(error)}; mend or remove this line") from None


def torn_bytes(path: Path) -> int:
    """How many bytes a crash left after the last whole line.

    Raises:
        GptlabError: More than a line has.
    """
    try:
        with opened(path) as file:
            file.seek(max(file.seek(0, os.SEEK_END) - MAX_LINE_BYTES - 1, 0))
            tail = file.read(MAX_LINE_BYTES + 1)
    except FileNotFoundError:
        return 0
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn > MAX_LINE_BYTES:
        raise GptlabError(f"{path} ends in a line that is too long to be read")
    return torn


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, in few words: what was given may be long."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where:.80}: {message:.200}" if where else f"{message:.200}"
