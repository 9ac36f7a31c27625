"""A child process that reads an untrusted run, under Python's audit hook and with limited memory."""

import json
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes that the child may allocate in addition to those that it starts with."""
PATIENCE_S = 100
"""Seconds after which a child that hangs is killed."""

CHANGES = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
}
"""Audit events that change the file system, and the number of paths in their arguments."""

TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]{8}\.tmp$")

FOREIGN = re.compile(r"os\.(system|exec|spawn|posix_spawn|fork|forkpty)|pty\.spawn|pickle\.find_class|socket\.connect")


@cache
def is_foreign(event: str) -> bool:
    """Return whether an audit event starts another program or connects to one."""
    return FOREIGN.fullmatch(event) is not None


@dataclass
class Watch:
    """An audit hook that records what the process must not do."""

    writable: list[Path]
    """The process may change only these and what is below them."""
    hostile: list[Path]
    """Nothing below them may be executed."""
    private: Path
    """Nothing below it may be opened."""
    offences: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        offence = None
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int):
                offence = self._opening(os.fsdecode(path), flags)
        elif event in CHANGES:
            offence = self._changing(event, arguments)
        elif event == "subprocess.Popen":
            offence = None if arguments[1][0] == "git" else f"starts {arguments[1]}"
        elif event in {"compile", "exec", "ctypes.dlopen"}:
            source = {"compile": arguments[-1], "exec": getattr(arguments[0], "co_filename", "")}.get(
                event, arguments[0]
            )
            if isinstance(source, str) and not set(self.hostile).isdisjoint(Path(source).parents):
                offence = f"{event} of {source}"
        elif is_foreign(event):
            offence = f"{event} {arguments}"
        if offence:
            self.offences.append(offence)

    def _opening(self, path: str, flags: int) -> str | None:
        real = os.path.realpath(path)
        if real.startswith(f"{self.private}{os.sep}"):
            return f"opens {path}"
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and not self._may_change(Path(real)):
            return f"writes {path}"
        return None

    def _changing(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        paths = [Path(os.fsdecode(path)) for path in arguments[: CHANGES[event]] if not isinstance(path, int)]
        for path in paths:
            if event == "os.mkdir" and path.is_dir() and not path.is_symlink():
                continue  # it exists already
            if path.is_absolute() and not self._may_change(Path(os.path.realpath(path.parent)) / path.name):
                return f"{event} {path}"
        return None

    def _may_change(self, path: Path) -> bool:
        path = path.with_name(TEMPORARY.sub(r"\1", path.name))  # what an atomic write replaces
        return path == Path("/dev/null") or any(path == root or root in path.parents for root in self.writable)


def in_child(work: Callable[[], object], watch: Watch, result: Path) -> dict[str, Any]:
    """Return the result of `work` in a watched child process; fail if there were offences."""
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        sys.addaudithook(watch.hear)
        try:
            document = {"result": work(), "offences": list(watch.offences)}
        except BaseException:
            document = {"offences": [traceback.format_exc()]}
        watch.writable.append(result.parent)
        result.write_text(json.dumps(document))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    document = json.loads(result.read_text())
    assert not document["offences"], "\n".join(document["offences"])
    return document["result"]
