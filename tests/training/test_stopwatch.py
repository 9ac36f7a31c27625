"""The measured peak memory is that of this process only, and CPU seconds are those of training over all attempts."""

import json
import subprocess
import sys
import time

import pytest

from gptlab.checkpoints.manifest import LoopState, list_checkpoints
from gptlab.tracking.metrics import read_metrics
from gptlab.training.stopwatch import Stopwatch

PEAK = "from gptlab.training.stopwatch import peak_memory_gib; print(peak_memory_gib('cpu'))"
STARTER = """
import subprocess, sys
much = b"x" * (9 << 27)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.slow
def test_peak_memory_does_not_include_that_of_the_parent_process():
    done = subprocess.run([sys.executable, "-c", STARTER, PEAK], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1, "GiB: torch itself, and not the 1.1 of the process before"


def test_cpu_seconds_count_work_and_neither_sleep_nor_pauses(monkeypatch):
    clock = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(time, "process_time", lambda: clock["cpu"])
    stopwatch = Stopwatch()
    clock.update(wall=10.0, cpu=15.0)
    with stopwatch.paused():
        clock.update(wall=12.0, cpu=19.0)
    assert (stopwatch.training_s(), stopwatch.cpu_s()) == (10.0, 15.0)


def test_cpu_seconds_of_all_attempts_are_added(train, micro, signal_at_step, monkeypatch):
    monkeypatch.setattr(Stopwatch, "cpu_s", lambda self: float(len(self.step_s)))  # one second per step
    run = train(micro, hooks=signal_at_step(12)).run
    assert list_checkpoints(run.directory)[-1].manifest.progress.cpu_s == 12
    train(micro, steps=40)
    rows = read_metrics(run.directory)
    assert {row["step"]: row["cpu_s"] for row in rows} == {step: step for step in range(0, 41, 5)}


def test_cpu_seconds_stay_unknown_after_a_checkpoint_without_them():
    assert LoopState.model_validate_json(json.dumps({"elapsed_s": 5.0})).cpu_s is None
