"""Cost of W&B for a step of `tiny`: blocks of ten steps with W&B's processes running alternate with blocks without.

W&B is online, with a loopback server in its own process, system metrics, and a row at every tenth step. In blocks
without W&B, its processes are stopped (SIGSTOP). They do that work in the next block, so the results overestimate the
cost. The blocks of a pair are adjacent, so other load on the machine affects both. Under heavy load, CPU time is more
reliable than wall time.
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
from typing import Any

from _table import Row

from gptlab import catalog
from gptlab.commands.run import Options, run_experiment
from gptlab.terminal.console import Console
from gptlab.training.loop import Hooks

PAIRS, STEPS = 6, 10
SERVER = """
import time
import wandb_server

with wandb_server.Server() as server:
    print(server.url, wandb_server.KEY, flush=True)
    for _ in range(1200):
        if server.runs:
            break
        time.sleep(0.1)
    else:
        raise TimeoutError("W&B did not connect in two minutes")
    print("connected", flush=True)
    time.sleep(3600)
"""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Moment:
    """Wall time and CPU seconds at the end of a block."""

    wall: float
    training: float
    wandb: float


class Alternating:
    """A hook for rows that stops W&B's processes in every second block and records the clocks at the end of each."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._processes: list[int] = []
        self.moments: list[Moment] = []

    def __call__(self, row: dict[str, Any]) -> None:
        """Record the end of a block, and stop or continue W&B's processes."""
        if row["step"] < STEPS or len(self.moments) > 2 * PAIRS:  # the first steps are slower
            return
        if not self._processes:
            assert self._server.stdout.readline() == "connected\n"
            (mirror,) = [child for child in _children(os.getpid()) if "gptlab.mirror.process" in _command(child)]
            self._processes = [mirror, *_children(mirror)]
        self.moments.append(Moment(time.perf_counter(), time.process_time(), sum(map(_cpu_s, self._processes))))
        number = signal.SIGSTOP if len(self.moments) % 2 == 0 else signal.SIGCONT
        for process in self._processes:
            os.kill(process, number)


def rows() -> Iterator[Row]:
    """Wall time and CPU time of the same blocks."""
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
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    url, key = server.stdout.readline().split()
    alternating = Alternating(server)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GPTLAB_RUNS": folder, "WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        try:
            run_experiment(tiny, 0, Options(wandb="online"), Console(stderr=True), hooks=Hooks(on_row=[alternating]))
        finally:
            server.terminate()
            server.wait()
    return alternating.moments


def _children(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for children in threads for child in children.read_text().split()]


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S
