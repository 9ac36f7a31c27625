import os
import signal
from collections.abc import Callable

import pytest
from support import run_attempt

from gptlab.spec import Experiment
from gptlab.tracking.run import Run
from gptlab.training import attempt
from gptlab.training.attempt import Result


@pytest.fixture
def train() -> Callable[..., Result]:
    """`train(experiment, seed=0, steps=…, …)` makes an attempt as the command does, W&B off."""
    return run_attempt


@pytest.fixture(scope="session")
def long_run(micro: Experiment, cache, tmp_path_factory) -> Run:
    """The micro experiment's forty steps without a break, in a runs directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        patch.setenv("GPTLAB_CACHE", str(cache))
        return run_attempt(micro).run


@pytest.fixture
def signal_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`signal_at_step(step, signal)` sends this process a real signal when that step is done, once."""

    def arrange(step: int, number: signal.Signals = signal.SIGINT) -> None:
        original, pending = attempt._Watchers.step, [step]

        def watch(self: object, done: int, loss: float | None) -> None:
            original(self, done, loss)
            if done in pending:
                pending.remove(done)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(attempt._Watchers, "step", watch)

    return arrange
