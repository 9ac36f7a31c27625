"""Cost of W&B for a step of `tiny`: blocks of ten steps with W&B's processes running alternate with blocks without.

W&B is online, with a server on loopback in its own process, system metrics, and a row at every tenth step. In the
blocks without W&B its processes are stopped (SIGSTOP), so those of the next block do the work of two: the figures
overestimate the cost. The blocks of a pair are adjacent, so other load on the machine affects both. Under much load,
CPU time is more reliable than wall time.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _table import Row

from gptlab import catalog
from gptlab.terminal.console import Console
from gptlab.training import attempt

PAIRS, STEPS = 6, 10
SERVER = "import wandb_server as w, time\nwith w.Server() as s: print(s.url, w.KEY, flush=True); time.sleep(3600)"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Moment:
    """Wall time and CPU seconds at the end of a block."""

    wall: float
    training: float
    wandb: float


class Alternating:
    """Stops W&B's processes in every second block and records the clocks at the end of each."""

    def __init__(self, mirrored) -> None:
        mirrored.wait_for("url")
        mirror = mirrored._process.pid
        cores = Path(f"/proc/{mirror}/task").glob("*/children")
        self._processes = [mirror, *(int(core) for children in cores for core in children.read_text().split())]
        self.moments: list[Moment] = []

    def row(self) -> None:
        """Record the end of a block, and stop or continue W&B's processes."""
        self.moments.append(Moment(time.perf_counter(), time.process_time(), sum(map(_cpu_s, self._processes))))
        number = signal.SIGSTOP if len(self.moments) % 2 == 0 else signal.SIGCONT
        for process in self._processes:
            os.kill(process, number)

    def resume(self) -> None:
        """Continue W&B's processes."""
        for process in self._processes:
            os.kill(process, signal.SIGCONT)


def rows() -> Iterator[Row]:
    """By wall time and CPU time of the same blocks."""
    blocks = list(itertools.pairwise(train()))[: 2 * PAIRS]  # with W&B, without, with, …
    mirror = sum(b.wandb - a.wandb for a, b in blocks)
    training = sum(b.training - a.training for a, b in blocks)
    row_ms = 1e3 * mirror / len(blocks)
    note = f"W&B's processes: {row_ms:.1f} ms of CPU time per row, {mirror / training:.2%} of the training process's"
    for what, clock, clocks in (
        ("a step of tiny with W&B", "wall", ("wall",)),
        ("a step of tiny with W&B, training process", "cpu", ("training",)),
        ("a step of tiny with W&B, all processes", "cpu", ("training", "wandb")),
    ):
        cost = [1e3 / STEPS * sum(getattr(b, name) - getattr(a, name) for name in clocks) for a, b in blocks]
        yield Row("W&B", what, "without W&B", "ms", cost[::2], cost[1::2], clock=clock, note=note)


def train() -> list[Moment]:
    """Train `tiny` and return the moments at the ends of the blocks."""
    tiny = catalog.find("tiny").with_changes(
        {
            "train.steps": 2 * STEPS * PAIRS + 3 * STEPS,
            "train.log_every": STEPS,
            "train.eval_every": 100_000,
            "train.checkpoint_every": 100_000,
            "train.snapshots": False,
        }
    )
    original, watch = attempt._Watchers.row, []

    def row(self, row) -> None:
        original(self, row)
        if row["step"] == STEPS:  # the first steps are slower
            watch.append(Alternating(self._mirror))
        if row["step"] >= STEPS and len(watch[0].moments) <= 2 * PAIRS:
            watch[0].row()
        elif watch:
            watch[0].resume()

    attempt._Watchers.row = row
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    url, key = server.stdout.readline().split()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GPTLAB_RUNS": folder, "WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        try:
            attempt.start(tiny, 0, attempt.Options(wandb="online"), Console(stderr=True))
        finally:
            attempt._Watchers.row = original
            server.terminate()
            server.wait()
    return watch[0].moments


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S
