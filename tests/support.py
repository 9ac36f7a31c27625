"""What tests call, as opposed to what they are given."""

from gptlab.console import Console
from gptlab.spec import Experiment
from gptlab.training import attempt
from gptlab.training.attempt import Options, Result


def run_attempt(experiment: Experiment, seed: int = 0, steps: int | None = None, **options: object) -> Result:
    """An attempt as the command makes it, W&B off."""
    if steps is not None:
        experiment = experiment.with_changes({"train.steps": steps})
    return attempt.start(experiment, seed, Options(**{"wandb": "off", **options}), Console(stderr=True))
