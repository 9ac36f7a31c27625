"""Overhead of the training loop for `tiny`, with metrics, W&B mirror and progress bar.

Overhead is everything except `TrainingStep`: forward pass, backward pass, clipping and update. Both are measured in the
same steps.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _table import Row
from rich.console import Console as RichConsole

from gptlab import catalog
from gptlab.commands.run import Options, run_experiment
from gptlab.data.windows import Windows
from gptlab.terminal.console import Console
from gptlab.training.loop import Hooks
from gptlab.training.step import TrainingStep

BLOCKS, BLOCK = 8, 10


@dataclass
class Clock:
    """Sums the seconds spent in a method while it is measured."""

    seconds: float = 0.0

    @contextmanager
    def measuring(self, owner: type, method: str) -> Iterator[None]:
        """A context in which calls of the method are timed."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        with patch.object(owner, method, timed):
            yield


def rows() -> Iterator[Row]:
    """The ratios of blocks of ten steps. The last step of a block writes a row of metrics."""
    moments: list[tuple[float, float, float]] = []
    step, data = Clock(), Clock()
    hooks = Hooks(on_row=[lambda row: moments.append((time.perf_counter(), step.seconds, data.seconds))])
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
        with step.measuring(TrainingStep, "__call__"), data.measuring(Windows, "batch"):
            run_experiment(tiny, 0, Options(wandb="offline"), console, hooks=hooks)
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
