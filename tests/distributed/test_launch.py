"""`--nproc` and torchrun start the processes. Each start takes 6 CPU seconds, so few tests check much."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import descendants, eventually

from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.tracking.run import load_run

pytestmark = pytest.mark.slow

OPTIONS = ("--wandb", "off", "--steps", "1000000", "--set", "train.checkpoint_every=5")


@pytest.fixture
def start():
    """`start(module, arguments…)` starts a program; nothing of it is left when the test ends."""
    started = []

    def program(*command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, "-m", *command], stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield program
    for process in started:
        for each in (*descendants(process.pid), process.pid) if process.poll() is None else ():
            os.kill(each, signal.SIGKILL)
        process.communicate()


def of_rank(process: subprocess.Popen[str], rank: int) -> int:
    """The id of the process of this rank."""
    for child in descendants(process.pid):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(rank)


def test_ctrl_c_on_the_launcher_saves_once_and_ends_all_processes(project, tmp_path, start):
    launched = start("gptlab", "run", "micro", "--nproc", "2", *OPTIONS)
    eventually(lambda: list(tmp_path.glob("runs/*/checkpoints/step-00000005/manifest.json")))
    children = descendants(launched.pid)
    launched.send_signal(signal.SIGINT)
    out, err = launched.communicate()
    assert (launched.returncode, err) == (130, "")
    assert out.count("saving, then stopping") == 1
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    (directory,) = (tmp_path / "runs").glob("micro-*")
    run = load_run(directory)
    history, newest = run.history(), list_checkpoints(directory)[-1]
    assert (history.outcome, history.step) == ("interrupted", newest.step)
    assert f"interrupted at step {newest.step} and saved" in out


def test_torchrun_restarts_from_the_newest_checkpoint_after_a_process_was_killed(project, tmp_path, start):
    torchrun = ("torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "gptlab")
    launched = start(*torchrun, "run", "micro", *OPTIONS)

    def directory():
        return next(iter((tmp_path / "runs").glob("micro-*")), None)

    def saved(step):
        return directory() and [each for each in list_checkpoints(directory()) if each.resumable and each.step >= step]

    eventually(lambda: saved(5))
    os.kill(of_rank(launched, 0), signal.SIGKILL)
    eventually(lambda: len(load_run(directory()).history().starts) == 2)
    resumed_from = load_run(directory()).history().starts[-1]["from_step"]
    assert resumed_from >= 5
    eventually(lambda: saved(resumed_from + 5))
    launched.send_signal(signal.SIGTERM)
    _, err = launched.communicate()
    assert launched.returncode != 0
    assert "process 1 of 2 stops, because another process has ended" in err
    history = load_run(directory()).history()
    assert (history.outcome, history.step) == ("interrupted", list_checkpoints(directory())[-1].step)
