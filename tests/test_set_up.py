"""The virtual environment that make sets up, with a `venv` and a `pip` that take no network and no time."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import eventually

ROOT = Path(__file__).resolve().parents[1]

PYTHON = """#!/bin/sh
if [ "$1 $2" != "-m venv" ]; then exec {python} "$@"; fi
mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && cp pip "$4/bin/pip"
"""
PIP = """#!/bin/sh
echo "$*" >> called
if [ -e fail ]; then echo "no network" >&2; exit 1; fi
while [ -e gate ]; do sleep 0.02; done
printf '#!/bin/sh\\necho "listed by %s"\\n' "$0" > "$(dirname "$0")/gptlab"
chmod +x "$(dirname "$0")/gptlab"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone, as far as make needs it."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name, script in {"python": PYTHON.format(python=sys.executable), "pip": PIP}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def make(clone: Path) -> Callable[..., subprocess.Popen[str]]:
    """`make()` starts `make exp` in a process group of its own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = ["make", "--no-print-directory", "PYTHON=./python", *(arguments or ["exp"])]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=clone, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return start


def calls(clone: Path) -> int:
    """How often pip was called; a set-up calls it twice."""
    return len((clone / "called").read_text().splitlines()) if (clone / "called").exists() else 0


def environments(clone: Path) -> set[str]:
    return {path.name for path in clone.glob(".venv*")} - {".venv.lock"}


def change_pins(clone: Path) -> None:
    """Make the pins newer than any environment."""
    now = max(path.stat().st_mtime_ns for path in clone.rglob("*")) + 10**7
    os.utime(clone / "constraints.txt", ns=(now, now))


def test_two_makes_at_once_in_a_fresh_clone_set_up_once_and_the_second_says_that_it_waits(clone, make):
    (clone / "gate").touch()
    first = make()
    eventually(lambda: calls(clone))
    second = make()
    assert second.stdout.readline() == "waiting for another make, which is setting up .venv\n"
    (clone / "gate").unlink()
    for process in (first, second):
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert "listed by" in out
    assert calls(clone) == 2


@pytest.mark.parametrize(
    ("number", "earlier"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, False), (signal.SIGTERM, True)],
)
def test_a_set_up_that_is_stopped_leaves_what_was_and_the_next_make_repairs_it(clone, make, number, earlier):
    if earlier:
        assert make().wait() == 0
        change_pins(clone)
    before = environments(clone)
    (clone / "gate").touch()
    process = make()
    eventually(lambda: calls(clone) == (3 if earlier else 1))
    os.killpg(process.pid, number)
    process.communicate()
    assert process.returncode
    assert (clone / ".venv" / ".ready").exists() == earlier
    (clone / "gate").unlink()
    (clone / "fail").touch()
    assert make().wait()
    assert environments(clone) == before, "the half-made one is removed at the beginning"
    (clone / "fail").unlink()
    assert make().wait() == 0
    assert len(environments(clone) - before) == (1 if earlier else 2)


def test_a_set_up_that_fails_leaves_the_earlier_environment_usable(clone, make):
    assert make().wait() == 0
    used = (clone / ".venv").resolve()
    change_pins(clone)
    (clone / "fail").touch()
    process = make()
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.splitlines()[:2] == [
        "no network",
        "error: the set-up failed for the reason above and changed nothing; run the same make again",
    ]
    assert environments(clone) == {".venv", used.name}
    assert subprocess.run([clone / ".venv" / "bin" / "gptlab"], capture_output=True, check=True).stdout
    (clone / "fail").unlink()
    assert make().wait() == 0
    assert environments(clone) == {".venv", used.name, (clone / ".venv").resolve().name}, "a process may be using it"
    change_pins(clone)
    assert make().wait() == 0
    assert used.name not in environments(clone)


def test_pins_that_change_during_the_set_up_are_installed_by_the_next_make(clone, make):
    (clone / "gate").touch()
    process = make()
    eventually(lambda: calls(clone))
    change_pins(clone)
    (clone / "gate").unlink()
    assert process.wait() == 0
    assert make().wait() == 0
    assert calls(clone) == 4
    assert make().wait() == 0
    assert calls(clone) == 4


def test_an_environment_of_an_earlier_version_is_replaced_and_another_folder_is_not(clone, make):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious").touch()
    process = make()
    assert process.communicate()[1].startswith("error: .venv exists and is not a virtual environment; move it, or set")
    assert (clone / ".venv" / "precious").exists()
    (clone / ".venv" / "pyvenv.cfg").touch()
    assert make().wait() == 0
    assert environments(clone) == {".venv", (clone / ".venv").readlink().name}


def test_an_environment_on_another_disk_stays_there(clone, make, tmp_path):
    (tmp_path / "disk").mkdir()
    (clone / ".venv").symlink_to(tmp_path / "disk" / "env")
    assert make().wait() == 0
    assert (clone / ".venv").readlink() == tmp_path / "disk" / "env"
    assert (tmp_path / "disk" / "env" / ".ready").exists()


def test_environments_are_ignored_by_git(clone, make):
    assert make().wait() == 0
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert ".venv" not in status
