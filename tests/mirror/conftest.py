import os
import signal
from collections.abc import Callable, Iterator

import pytest
from support import run_attempt
from wandb_server import Server

from gptlab.mirror.mirror import Mirror
from gptlab.spec import Experiment
from gptlab.tracking.metrics import Row
from gptlab.training.loop import Hooks


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
def at_row(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Mirror], None]], Hooks]:
    """`at_row(step, act)` returns hooks that call `act(mirror)` when the row of that step is written."""
    mirrors = []

    class ObservedMirror(Mirror):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            mirrors.append(self)

    def arrange(step: int, act: Callable[[Mirror], None]) -> Hooks:
        monkeypatch.setattr("gptlab.commands.run.Mirror", ObservedMirror)
        return Hooks(on_row=[lambda row: act(mirrors[-1]) if row["step"] == step else None])

    return arrange


@pytest.fixture
def killed() -> Callable[..., None]:
    """`killed(experiment, at=…, …)` trains in a process that is killed when the row of that step is written."""

    def train(experiment: Experiment, at: int, **options: object) -> None:
        def kill(row: Row) -> None:
            if row["step"] == at:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            run_attempt(experiment, hooks=Hooks(on_row=[kill]), **options)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    return train
