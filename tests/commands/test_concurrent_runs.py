"""Several processes begin the same new run at once: one trains it, and each other one ends with one line."""

import fcntl
import os
import sys
from pathlib import Path

import pytest
from faults import in_child

from gptlab import cli
from gptlab.tracking.run import all_runs

pytestmark = pytest.mark.slow

PROCESSES = 4


def test_of_processes_that_begin_the_same_run_each_trains_it_or_names_the_one_that_does(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gptlab", "run", "micro", "--wandb", "off"])

    def start_with_others() -> None:
        fcntl.flock(os.open(tmp_path, os.O_RDONLY), fcntl.LOCK_SH)  # all wait until the lock below is released
        cli.main()

    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    children = []
    for number in range(PROCESSES):
        (tmp_path / str(number)).mkdir()
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(in_child(start_with_others, tmp_path / str(number)).code)
    fcntl.flock(lock, fcntl.LOCK_UN)  # closing it would not do: the children inherited it
    os.close(lock)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in {0, 1}
    errors = [(tmp_path / str(number) / "err").read_text() for number in range(PROCESSES)]
    assert errors.count("") >= 1
    for error in errors:
        assert not error or "is being trained by process" in error
        assert error.count("\n") <= 1
    (run,) = all_runs()
    assert (run.history().status, run.history().step) == ("complete", 40)
    assert len(run.history().starts) == 1
    assert not list(run.directory.glob(".*.tmp"))
