"""How many processors and how much memory this process may use: less than the machine has, in a container.

Limits come from control groups (versions 1 and 2; a limit of any ancestor counts too), from the processor affinity and
from `ulimit -v`. Where the system has none of these, the machine's own numbers hold.
"""

import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables with the number of threads that libraries compute with."""
ROOT = Path("/")
MOUNT = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) .*?- (\S+) \S+ (\S+)")
"""A line of `/proc/self/mountinfo`: the folder that is mounted, where, the file system and its options."""
MEMBERSHIP = re.compile(r"\d+:([^:]*):(/.*)")
"""A line of `/proc/self/cgroup`: the controllers, none in version 2, and the group."""


@dataclass(frozen=True)
class Processors:
    """The processors that this process may use."""

    cores: int
    """Cores that it may run on."""
    quota: float | None
    """Processor time per time that the control group allows; None if there is no quota."""

    @property
    def threads(self) -> int:
        """How many threads can run without waiting for each other's share of the quota."""
        return max(min(self.cores, math.floor(self.quota) if self.quota else self.cores), 1)


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest limit on this process's memory."""

    bytes: int
    name: str
    in_use: int
    """Bytes that count towards the limit already."""


def processors(root: Path = ROOT) -> Processors:
    """Return how many processors this process may use. `root` is where the system's files are."""
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [quota for group in _control_groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    return Processors(cores, min(quotas, default=None))


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """Return the limit that is reached first, or None if none is known. `root` is where the system's files are."""
    virtual, resident = _memory_in_use(root)
    limits = [
        MemoryLimit(limit, "the memory limit of the container or control group", resident)
        for group in _control_groups("memory", root)
        for file in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / file)) is not None
    ]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(MemoryLimit(address_space, "the limit on address space (ulimit -v)", virtual))
    with suppress(OSError, ValueError):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limits.append(MemoryLimit(machine, "the memory of this machine", resident))
    return min(limits, key=lambda limit: limit.bytes - limit.in_use, default=None)


def out_of_memory_kills(root: Path = ROOT) -> int | None:
    """Return how many processes of the control group the kernel has killed for memory so far; None if unknown."""
    for group in _control_groups("memory", root):
        for file in ("memory.events", "memory.oom_control"):
            for line in _lines(group / file):
                name, _, count = line.partition(" ")
                if name == "oom_kill" and count.isdecimal():
                    return int(count)
    return None


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of its visible ancestors, nearest first."""
    mounts = [found.groups() for line in _lines(root / "proc/self/mountinfo") if (found := MOUNT.match(line))]
    for line in _lines(root / "proc/self/cgroup"):
        controllers, path = found.groups() if (found := MEMBERSHIP.match(line)) else ("?", "/")
        for top, mounted_at, kind, options in mounts:
            version_1 = kind == "cgroup" and controller in controllers.split(",") and controller in options.split(",")
            if version_1 or (kind == "cgroup2" and not controllers):
                mount = root / mounted_at.lstrip("/")
                inside = Path(path).is_relative_to(top) and ".." not in Path(path).parts
                folder = mount / Path(path).relative_to(top) if inside else mount
                yield from (group for group in (folder, *folder.parents) if group.is_relative_to(mount))


def _cpu_quota(group: Path) -> float | None:
    for line in _lines(group / "cpu.max"):  # version 2: quota and period in microseconds, or "max"
        quota, _, period = line.partition(" ")
        return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None
    microseconds, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return microseconds / period_us if microseconds and period_us else None


def _number(path: Path) -> int | None:
    """The number in a file; None if it has none, such as `max` or -1."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _memory_in_use(root: Path) -> tuple[int, int]:
    """Virtual and resident bytes of this process; zeros if unknown."""
    for line in _lines(root / "proc/self/statm"):
        virtual, resident, *_ = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in line.split())
        return virtual, resident
    return 0, 0


def _lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
