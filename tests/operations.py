"""Act at the N-th operation of a process on its files: let it die there, or let the disk be full."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from gptlab.checkpoints import write
from gptlab.checkpoints.manifest import FileDigest


class Operations:
    """Counts file operations (open for writing, fsync, rename, remove, mkdir) of all threads, and calls `act` at one.

    A tensor file counts once more: when half of it is written.
    """

    def __init__(self, act_at: int, act: Callable[[], None]) -> None:
        self.count, self._act_at, self._act = 0, act_at, act
        self._lock = threading.Lock()

    def watch(self, folder: Path) -> None:
        """Start to count, in this process, the operations on files below `folder`."""
        self._folder = str(folder)
        sys.addaudithook(self._hear)
        fsync, write_tensors = os.fsync, write.write_tensors

        def counted_fsync(descriptor: int) -> None:
            self._done()
            fsync(descriptor)

        def torn_write(path: Path, files: dict, metadata: dict) -> FileDigest:
            digest, whole = write_tensors(path, files, metadata), path.read_bytes()
            os.truncate(path, digest.bytes // 2)
            self._done()
            path.write_bytes(whole)
            return digest

        os.fsync, write.write_tensors = counted_fsync, torn_write

    def _hear(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}:
            path = os.fspath(arguments[0]) if isinstance(arguments[0], (str, Path)) else ""
            if path.startswith(self._folder) or not path.startswith("/"):  # rmtree passes relative names
                self._done()

    def _done(self) -> None:
        with self._lock:
            self.count += 1
            due = self.count == self._act_at
        if due:
            self._act()
