import pytest

from gptlab.console import Console
from gptlab.training import attempt


@pytest.fixture
def run_micro(micro):
    """`run_micro(steps=10, wandb="off")` trains the micro experiment and gives the run."""

    def run(steps=10, wandb="off"):
        experiment = micro.with_changes({"train.steps": steps})
        return attempt.start(experiment, 0, attempt.Options(wandb=wandb), Console(stderr=True)).run

    return run
