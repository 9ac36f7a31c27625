"""One process at a time trains a run.

Two files. `lock` is held exclusively by the process that trains, for its life; the kernel lets go of it when the
process ends, however it ends. `heartbeat` says who that is, and is locked as well: asking whether a run is alive looks
there, and so never stands in the way of somebody who takes `lock`.
"""

import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from gptlab.errors import GptlabError
from gptlab.tracking.reading import MAX_LINE_BYTES, Count, opened

LOCK, HEARTBEAT = "lock", "heartbeat"


@dataclass(frozen=True)
class Holder:
    """The process that trains a run."""

    host: str = "an unknown host"
    pid: Count = 0
    since: str = "just now"


class RunLock:
    """A context manager around a run's training.

    Raises:
        GptlabError: Another process holds the run; the message says which.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = FileLock(directory / LOCK, timeout=0, fallback_to_soft=False)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            holder = holder_of(self._directory) or Holder()
            raise GptlabError(
                f"{self._directory.name} is being trained by process {holder.pid} on {holder.host} since "
                f"{holder.since}; wait for it, or stop it with: kill {holder.pid}"
            ) from None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._heartbeat = (self._directory / HEARTBEAT).open("w")
        fcntl.flock(self._heartbeat, fcntl.LOCK_EX)
        json.dump(asdict(Holder(socket.gethostname(), os.getpid(), since)), self._heartbeat)
        self._heartbeat.flush()
        return self

    def beat(self) -> None:
        """Show that the process is alive, for file systems whose locks other machines cannot see."""
        os.utime(self._heartbeat.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.close()
        self._lock.release()


def holder_of(directory: Path) -> Holder | None:
    """Who trains the run now, or None. Never takes the run's lock."""
    try:
        with opened(directory / HEARTBEAT) as heartbeat:
            try:
                fcntl.flock(heartbeat, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(heartbeat.read(MAX_LINE_BYTES))
    except FileNotFoundError:
        pass
    return None


def _read_holder(content: bytes) -> Holder:
    try:
        return TypeAdapter(Holder).validate_json(content)
    except ValidationError:
        return Holder()
