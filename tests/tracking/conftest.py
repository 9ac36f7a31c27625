import os
import signal
from collections.abc import Callable, Iterator

import pytest
from support import run_attempt
from wandb_server import Server

from gptlab.spec import Experiment
from gptlab.tracking.metrics import Row
from gptlab.tracking.mirror import Mirror
from gptlab.tracking.run import Run
from gptlab.training import attempt


@pytest.fixture
def run_micro(micro):
    """`run_micro(steps=10, wandb="off")` trains the micro experiment and gives the run."""

    def run(steps: int = 10, wandb: str | None = "off", **options: object) -> Run:
        return run_attempt(micro, steps=steps, wandb=wandb, **options).run

    return run


@pytest.fixture
def curve(micro: Experiment) -> Experiment:
    """Rows at every fifth step, checkpoints at every twentieth, so that a crash loses rows that were sent."""
    return micro.with_changes({"name": "curve", "train.eval_every": 20, "train.checkpoint_every": 20})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server, which this process and those that it starts have a key for."""
    with Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def at_row(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Mirror], None]], None]:
    """`at_row(step, act)` calls `act(mirror)` once the row of that step is written, as often as it comes."""

    def arrange(step: int, act: Callable[[Mirror], None]) -> None:
        original = attempt._Watchers.row

        def watch(self: attempt._Watchers, row: Row) -> None:
            original(self, row)
            if row["step"] == step:
                act(self._mirror)

        monkeypatch.setattr(attempt._Watchers, "row", watch)

    return arrange


@pytest.fixture
def killed(at_row) -> Callable[..., None]:
    """`killed(experiment, at=…, …)` trains in a process that is killed when the row of a step is written."""

    def train(experiment: Experiment, at: int, **options: object) -> None:
        child = os.fork()
        if child == 0:
            at_row(at, lambda mirror: os.kill(os.getpid(), signal.SIGKILL))
            run_attempt(experiment, **options)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    return train
