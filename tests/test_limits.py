"""Processors and memory that this process may use, from trees like those of real systems."""

import os
import resource
from pathlib import Path

import pytest

from gptlab import limits
from gptlab.limits import memory_limit, out_of_memory_kills, processors

GIB = 2**30
VERSION_2 = "36 25 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = [
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw",
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "33 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    "34 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
]


def tree(root: Path, mounts: list[str], groups: list[str], files: dict[str, str]) -> Path:
    """A system with these mounts, memberships and files below `/sys/fs/cgroup`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.fixture(autouse=True)
def two_cores_and_no_other_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}[name])


@pytest.mark.parametrize(
    ("files", "threads", "quota"),
    [
        ({"cpu.max": "max 100000"}, 2, None),
        ({"cpu.max": "100000 100000"}, 1, 1.0),
        ({"cpu.max": "150000 100000"}, 1, 1.5),
        ({"cpu.max": "50000 100000"}, 1, 0.5),
        ({"cpu.max": "800000 100000"}, 2, 8.0),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, 1, 1.0),
        ({"a/b/cpu.max": "200000 100000", "a/cpu.max": "100000 100000"}, 1, 1.0),
        ({"other/cpu.max": "100000 100000"}, 2, None),
        ({"cpu.max": "nonsense"}, 2, None),
        ({"cpu.max": "100000 0"}, 2, None),
        ({"cpu.max": ""}, 2, None),
        ({}, 2, None),
    ],
)
def test_threads_are_those_of_the_quota_in_version_2(tmp_path: Path, files: dict, threads: int, quota: float | None):
    found = processors(tree(tmp_path, [VERSION_2], ["0::/a/b"], files))
    assert (found.threads, found.quota, found.cores) == (threads, quota, 2)


@pytest.mark.parametrize(("quota_us", "threads"), [("-1", 2), ("100000", 1), ("300000", 2)])
def test_threads_are_those_of_the_quota_in_version_1(tmp_path: Path, quota_us: str, threads: int):
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": quota_us, "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert processors(tree(tmp_path, VERSION_1, ["4:cpu,cpuacct:/a", "0::/"], files)).threads == threads


def test_affinity_limits_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert processors(tree(tmp_path, [], [], {})).threads == 1


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path):
    mounts = ["33 31 0:32 /docker/1234 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"]
    files = {"memory/memory.limit_in_bytes": str(GIB)}
    assert memory_limit(tree(tmp_path / "a", mounts, ["9:memory:/docker/1234"], files)).bytes == GIB
    assert memory_limit(tree(tmp_path / "b", mounts, ["9:memory:/elsewhere"], files)).bytes == GIB
    assert memory_limit(tree(tmp_path / "c", [VERSION_2], ["0::/../x"], {"memory.max": str(GIB)})).bytes == GIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max"}, 64 * GIB),
        ({"a/b/memory.max": str(2 * GIB)}, 2 * GIB),
        ({"a/b/memory.max": "max", "a/memory.max": str(3 * GIB), "memory.max": str(4 * GIB)}, 3 * GIB),
    ],
)
def test_the_tightest_memory_limit_counts(tmp_path: Path, files: dict, expected: int):
    assert memory_limit(tree(tmp_path, [VERSION_2], ["0::/a/b"], files)).bytes == expected


def test_version_1_without_a_limit_has_that_of_the_machine(tmp_path: Path):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712"}
    limit = memory_limit(tree(tmp_path, VERSION_1, ["9:memory:/"], files))
    assert (limit.bytes, limit.name) == (64 * GIB, "the memory of this machine")


def test_a_limit_on_address_space_counts_virtual_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5 * GIB, 5 * GIB))
    root = tree(tmp_path, [], [], {})
    (root / "proc/self/statm").write_text(f"{4 * GIB // 4096} {GIB // 4096} 1 1 0 1 0\n")
    limit = memory_limit(root)
    assert (limit.bytes, limit.in_use) == (5 * GIB, 4 * GIB)
    assert "ulimit -v" in limit.name


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "kills"),
    [
        ([VERSION_2], ["0::/a"], {"a/memory.events": "low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0"}, 2),
        (VERSION_1, ["9:memory:/a"], {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1"}, 1),
        ([VERSION_2], ["0::/"], {}, None),
    ],
)
def test_kills_are_counted(tmp_path: Path, mounts: list, groups: list, files: dict, kills: int | None):
    assert out_of_memory_kills(tree(tmp_path, mounts, groups, files)) == kills


def test_a_system_without_these_files_has_the_limits_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert processors(tmp_path).threads == 2
    assert memory_limit(tmp_path).bytes == 64 * GIB
    assert out_of_memory_kills(tmp_path) is None
    monkeypatch.setattr(limits.sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert processors(tmp_path).threads == 8


def test_this_system_can_be_asked():
    assert processors().threads >= 1
    assert out_of_memory_kills() is None or out_of_memory_kills() >= 0
