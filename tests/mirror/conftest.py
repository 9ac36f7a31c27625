import os
import signal
from collections.abc import Callable, Iterator

import pytest
from support import run_attempt
from wandb_server import Server

from gptlab.mirror.mirror import Mirror
from gptlab.spec import Experiment
from gptlab.tracking.metrics import Row
from gptlab.training import attempt


@pytest.fixture
def curve(micro: Experiment) -> Experiment:
    """A row every 5 steps and a checkpoint every 20, so that a crash loses rows that were already sent."""
    return micro.with_changes({"name": "curve", "train.eval_every": 20, "train.checkpoint_every": 20})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server; this process and its children have a key for it."""
    with Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def at_row(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Mirror], None]], None]:
    """`at_row(step, act)` calls `act(mirror)` each time the row of that step is written."""

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
    """`killed(experiment, at=…, …)` trains in a process that is killed when the row of that step is written."""

    def train(experiment: Experiment, at: int, **options: object) -> None:
        child = os.fork()
        if child == 0:
            at_row(at, lambda mirror: os.kill(os.getpid(), signal.SIGKILL))
            run_attempt(experiment, **options)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    return train
