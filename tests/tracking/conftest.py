import pytest
from support import run_attempt

from gptlab.tracking.run import Run


@pytest.fixture
def run_micro(micro):
    """`run_micro(steps=10, wandb="off")` trains the micro experiment and returns the run."""

    def run(steps: int = 10, wandb: str | None = "off", **options: object) -> Run:
        return run_attempt(micro, steps=steps, wandb=wandb, **options).run

    return run
