"""What W&B costs a step of `tiny`: blocks of ten steps with the mirror at work, and with it stopped, by turns.

    python tests/bench/wandb_cost.py

Everything is on: online, a server on loopback in a process of its own, system metrics, a row at every tenth step. In
the blocks without W&B its processes stand still (SIGSTOP), so those with it do the work of two: what is shown is too
much rather than too little. The blocks of a pair follow each other, so that whatever else the machine does meets both;
where it does much, CPU time says more than the clock.
"""

import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import typer

from gptlab import catalog
from gptlab.console import Console
from gptlab.training import attempt

PAIRS = 6
SERVER = "import wandb_server as w, time\nwith w.Server() as s: print(s.url, w.KEY, flush=True); time.sleep(3600)"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Moment:
    """The clocks at the end of a block, in seconds."""

    wall: float
    training: float
    wandb: float


class Alternating:
    """Watches rows come, and lets the processes of W&B work in every second block."""

    def __init__(self, mirrored) -> None:
        mirrored.wait_for("url")
        mirror = mirrored._process.pid
        cores = Path(f"/proc/{mirror}/task").glob("*/children")
        self._processes = [mirror, *(int(core) for children in cores for core in children.read_text().split())]
        self.moments: list[Moment] = []

    def row(self) -> None:
        """A block has ended."""
        self.moments.append(Moment(time.perf_counter(), time.process_time(), sum(map(_cpu_s, self._processes))))
        number = signal.SIGSTOP if len(self.moments) % 2 == 0 else signal.SIGCONT
        for process in self._processes:
            os.kill(process, number)

    def resume(self) -> None:
        """Let them end."""
        for process in self._processes:
            os.kill(process, signal.SIGCONT)


def main() -> None:
    """Train, and print the table."""
    tiny = catalog.find("tiny").with_changes(
        {
            "train.steps": 20 * PAIRS + 30,
            "train.log_every": 10,
            "train.eval_every": 100_000,
            "train.checkpoint_every": 100_000,
            "train.snapshots": False,
        }
    )
    original, watch = attempt._Watchers.row, []

    def row(self, row) -> None:
        original(self, row)
        if row["step"] == 10:  # the first steps are slower
            watch.append(Alternating(self._mirror))
        if row["step"] >= 10 and len(watch[0].moments) <= 2 * PAIRS:
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
    _report(watch[0].moments)


def _report(moments: list[Moment]) -> None:
    blocks = list(itertools.pairwise(moments))[: 2 * PAIRS]  # with W&B, without, with, …
    typer.echo(f"{'milliseconds per step':<28}{'without':>10}{'with W&B':>10}   with/without: min  median     max")
    for name, clocks in {
        "wall": ("wall",),
        "CPU of the training process": ("training",),
        "CPU, W&B's processes with it": ("training", "wandb"),
    }.items():
        cost = [100 * sum(getattr(b, clock) - getattr(a, clock) for clock in clocks) for a, b in blocks]
        on, off = cost[::2], cost[1::2]
        ratios = sorted(a / b for a, b in zip(on, off, strict=True))
        typer.echo(
            f"{name:<28}{statistics.median(off):>10.2f}{statistics.median(on):>10.2f}"
            f"{ratios[0]:>22.3f}{statistics.median(ratios):>8.3f}{ratios[-1]:>8.3f}"
        )
    mirror = sum(b.wandb - a.wandb for a, b in blocks)
    training = sum(b.training - a.training for a, b in blocks)
    share = 100 * mirror / training
    typer.echo(f"W&B's processes: {1000 * mirror / len(blocks):.1f} ms of CPU for a row, {share:.2f}% of its steps'")


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


if __name__ == "__main__":
    main()
