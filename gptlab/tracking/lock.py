"""The lock that lets one process at a time train a run.

There are two files. The training process holds `lock` exclusively; the kernel releases it however the process ends.
`heartbeat` names that process and is locked as well; it is emptied when the process lets go, so a name in it without a
lock is that of a process that was killed. Queries look at `heartbeat` only, so they never compete with a
process that acquires `lock`.
"""

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from gptlab.errors import GptlabError
from gptlab.files import NOT_SUPPORTED, no_locks
from gptlab.untrusted import MAX_LINE_BYTES, Count, open_regular

LOCK, HEARTBEAT = "lock", "heartbeat"


@dataclass(frozen=True)
class Holder:
    """The process that holds a run's lock. The defaults stand for a process that has not written its name yet."""

    host: str = "an unknown host"
    pid: Count = 0
    since: str = "just now"


class RunLock:
    """A context manager that holds a run's lock.

    Raises:
        GptlabError: Another process holds it (the message names the process), or the file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = FileLock(directory / LOCK, timeout=0, fallback_to_soft=False)

    predecessor_was_killed = False
    """Whether the process that held the lock before was killed."""

    def __enter__(self) -> Self:
        try:
            self._acquire()
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            raise no_locks(self._directory, error, "GPTLAB_RUNS") from error
        return self

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            holder = lock_holder(self._directory) or Holder()
            raise GptlabError(
                f"{self._directory.name} is being trained by process {holder.pid} on {holder.host} since "
                f"{holder.since}; wait for it, or stop it with: kill {holder.pid}"
            ) from None
        try:
            self._heartbeat = (self._directory / HEARTBEAT).open("a")
            fcntl.flock(self._heartbeat, fcntl.LOCK_EX)
            self.predecessor_was_killed = self._heartbeat.tell() > 0
            self._heartbeat.truncate(0)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            json.dump(asdict(Holder(socket.gethostname(), os.getpid(), since)), self._heartbeat)
            self._heartbeat.flush()
        except BaseException:  # such as a full disk
            self._lock.release()
            raise

    def beat(self) -> None:
        """Update the heartbeat's modification time, for users whose file system hides locks from other machines."""
        with suppress(OSError):  # it is information for people; training does not depend on it
            os.utime(self._heartbeat.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the disk failed
            self._heartbeat.truncate(0)
        self._heartbeat.close()
        self._lock.release()


def lock_holder(directory: Path) -> Holder | None:
    """Return the process that is training the run, or None. Never takes `lock`.

    Where the file system has no locks, nothing is being trained: `RunLock` refuses to.

    Raises:
        GptlabError: `heartbeat` is not a regular file or cannot be read.
    """
    try:
        with open_regular(directory / HEARTBEAT) as heartbeat:
            try:
                fcntl.flock(heartbeat, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(heartbeat.read(MAX_LINE_BYTES))
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
    except FileNotFoundError:
        pass
    return None


def _read_holder(content: bytes) -> Holder:
    try:
        return TypeAdapter(Holder).validate_json(content)
    except ValidationError:
        return Holder()
