"""Temporary directories that do not outlive their process for long, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_directory(purpose: str) -> Iterator[Path]:
    """Create the directory `gptlab-PURPOSE-…` in the system's temporary directory, and remove it at the end.

    A killed process cannot remove its directory; the next call does. Each process holds a lock on its directory while
    it lives, so a directory without a lock is abandoned.
    """
    prefix = f"gptlab-{purpose}-"
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_abandoned(path)
    directory, descriptor = _create(prefix)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _create(prefix: str) -> tuple[Path, int]:
    """Create and lock a directory. Returns it and the descriptor that holds the lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nobody can lock the directory, so nobody removes it
            return directory, descriptor
        if directory.exists():  # else another process took it for abandoned before it was locked
            return directory, descriptor
        os.close(descriptor)


def _remove_if_abandoned(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, already removed, or not a directory
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:  # in use, or a file system without locks
        pass
    finally:
        os.close(descriptor)
