"""Write files so that a crash leaves the old content or the new one, never a mixture.

Errors name the file. Python names it when a file is opened, but not when it is written or flushed.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.untrusted import torn_bytes

logger = logging.getLogger(__name__)

NOT_SUPPORTED = frozenset(
    {
        errno.EBADF,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
    }
)
"""What file systems answer to a flush or a lock that they do not support: CIFS, Lustre, NFS, FUSE and others differ."""

_reported_devices: set[int] = set()
"""File systems whose directories cannot be flushed, as one notice per process has said."""


def make_directory(path: Path) -> None:
    """Create a directory and its parents if they do not exist.

    Raises:
        GptlabError: It cannot be created; the message names it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptlabError(f"{path} cannot be created: {error.strerror}") from error


def writable_cache(name: str) -> Path:
    """Return a folder of the cache directory, which is created if it does not exist.

    Raises:
        GptlabError: It cannot be created or written to; the message names it.
    """
    folder = project.cache_directory() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "no permission, or it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise GptlabError(f"{folder} cannot be written: {reason}; set GPTLAB_CACHE to a directory that can")
    return folder


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
        with _naming(path), temporary.open("xb") as file:  # "x" opens no existing file and follows no link
            yield file
            file.flush()
            if durable:
                _fsync(file.fileno(), path)
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
    with _naming(path), path.open("ab") as file:
        if torn:  # a crash left half a line, which would corrupt this one
            file.truncate(file.tell() - torn)
        file.write(line.encode())
        file.flush()
        _fsync(file.fileno(), path)


def remove_temporary_files(directory: Path) -> None:
    """Remove the temporary files of killed processes. No other process may be writing to the directory."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def fsync_file(path: Path) -> None:
    """Flush a file's bytes to the disk.

    Raises:
        GptlabError: The file system cannot flush files.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            _fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power failure.

    Some file systems cannot do that. One notice says so, and the work goes on: the files themselves are flushed, so
    only a power failure could undo a rename.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        device = path.stat().st_dev
        if device not in _reported_devices:
            _reported_devices.add(device)
            logger.warning(
                "%s is on a file system that cannot flush directories (%s); a power failure could undo the last "
                "checkpoint; GPTLAB_RUNS moves the runs to another disk",
                path,
                error.strerror,
            )


def no_locks(directory: Path, error: OSError, variable: str) -> GptlabError:
    """Return the error for a directory in which files cannot be locked.

    Args:
        directory: The directory.
        error: What locking raised.
        variable: The environment variable that moves the directory elsewhere.
    """
    return GptlabError(
        f"{directory} is on a file system without file locks ({error.strerror}), which keep two processes from writing "
        f"the same files; set {variable} to a directory on another one, or mount it with locks"
    )


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise GptlabError(
            f"{path} is on a file system that cannot flush a file to the disk ({error.strerror}); "
            "set GPTLAB_RUNS to a directory on another one"
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to an `OSError` that names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
