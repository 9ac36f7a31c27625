"""What tests call, as opposed to what they are given."""

import time
from collections.abc import Callable
from pathlib import Path

from gptlab.console import Console
from gptlab.spec import Experiment
from gptlab.training import attempt
from gptlab.training.attempt import Options, Result

PATIENCE_S = 60
"""How long to wait for what other processes do, on a machine that does a lot else."""


def run_attempt(experiment: Experiment, seed: int = 0, steps: int | None = None, **options: object) -> Result:
    """An attempt as the command makes it, W&B off."""
    if steps is not None:
        experiment = experiment.with_changes({"train.steps": steps})
    return attempt.start(experiment, seed, Options(**{"wandb": "off", **options}), Console(stderr=True))


def eventually(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(process: int) -> dict[int, str]:
    """The processes that a process started, directly or not, by id, with their names."""
    found = {}
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
        found |= descendants(int(child))
    return found
