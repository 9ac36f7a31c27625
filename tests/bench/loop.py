"""Overhead of the training loop for `tiny`, with metrics, W&B mirror and progress bar.

Overhead is everything except forward pass, backward pass, clipping and update. Both are measured in the same steps.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _table import Row
from rich.console import Console as RichConsole

from gptlab import catalog
from gptlab.data.windows import Windows
from gptlab.model.gpt import GPT
from gptlab.terminal.console import Console
from gptlab.training import attempt, optimizer

BLOCKS, BLOCK = 8, 10
STEP = [
    (GPT, "forward"),
    (torch.Tensor, "backward"),
    (optimizer, "gradient_norm"),
    (optimizer, "clipped_update"),
]
DATA = [(Windows, "batch")]


class Clock:
    """Sums the seconds spent in functions, which it wraps within the context."""

    def __init__(self, functions: list[tuple[Any, str]]) -> None:
        self._functions, self.seconds = functions, 0.0

    def __enter__(self) -> "Clock":
        self._originals = [getattr(owner, name) for owner, name in self._functions]
        for (owner, name), original in zip(self._functions, self._originals, strict=True):
            setattr(owner, name, self._timed(original))
        return self

    def __exit__(self, *error: object) -> None:
        for (owner, name), original in zip(self._functions, self._originals, strict=True):
            setattr(owner, name, original)

    def _timed(self, original: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def rows() -> Iterator[Row]:
    """A pair is a block of ten steps; the last step writes a row of metrics."""
    moments: list[tuple[float, float, float]] = []
    original = attempt._Watchers.row

    def row(self: Any, row: Any) -> None:
        original(self, row)
        moments.append((time.perf_counter(), step.seconds, data.seconds))

    attempt._Watchers.row = row
    tiny = catalog.find("tiny").with_changes(
        {
            "train.steps": BLOCK * (BLOCKS + 2) + 1,
            "train.log_every": BLOCK,
            "train.eval_every": 100_000,
            "train.checkpoint_every": 100_000,
            "train.snapshots": False,
        }
    )
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        os.environ["GPTLAB_RUNS"] = folder
        console = Console()
        console.rich = RichConsole(file=nowhere, force_terminal=True, width=120)
        try:
            with Clock(STEP) as step, Clock(DATA) as data:
                attempt.start(tiny, 0, attempt.Options(wandb="offline"), console)
        finally:
            attempt._Watchers.row = original
    blocks = [
        [1e3 * (after - before) / BLOCK for before, after in zip(*pair, strict=True)]
        for pair in itertools.pairwise(moments[2:])  # the first steps are slower
    ][:BLOCKS]
    total, inside, batches = zip(*blocks, strict=True)
    overhead = [all_ - own for all_, own in zip(total, inside, strict=True)]
    reference = f"the step itself ({statistics.median(inside):.0f} ms)"
    note = f"blocks of {BLOCK} steps with metrics, progress bar and W&B offline"
    for what, ours, target in (
        ("loop overhead per step of tiny", overhead, "<= 0.01"),
        ("making a step's batch", batches, "<= 0.002"),
    ):
        yield Row("loop", what, reference, "ms/step", ours, inside, target=target, note=note)
