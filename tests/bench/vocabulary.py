"""A training step of tiny on the CPU with fewer tokens vs. with GPT-2's. Steps are interleaved.

Steps of different tokenizers read different amounts of text, so speed is in bytes of text.
"""

from collections.abc import Iterator

import torch
from _pairs import Work, interleave
from _table import Row

from gptlab import catalog
from gptlab.data.text import locate
from gptlab.data.vocabularies import tokenizer_of
from gptlab.model import gpt
from gptlab.training import optimizer
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.step import TrainingStep
from gptlab.training.training_data import load_training_data

WARM_UP, PAIRS = 2, 15
CASES = {"tiny-4k": ">= 4", "tiny-bytes": ">= 1.8"}


def rows() -> Iterator[Row]:
    """Speed of each experiment vs. tiny."""
    torch.set_num_threads(1)
    steps = {name: step_of(name) for name in ("tiny", *CASES)}
    costs = interleave({name: step for name, (_, step) in steps.items()}, WARM_UP + PAIRS)
    for clock in ("wall", "cpu"):
        speeds = {
            name: [steps[name][0] / getattr(cost, f"{clock}_s") for cost in took[WARM_UP:]]
            for name, took in costs.items()
        }
        for name, target in CASES.items():
            yield Row(
                "vocabulary",
                name,
                "tiny, 50,257 tokens",
                "kB of text/s",
                speeds[name],
                speeds["tiny"],
                target=target,
                clock=clock,
            )


def step_of(name: str) -> tuple[float, Work]:
    """The kB of text that a step of an experiment reads on average, and the step."""
    experiment = catalog.find(name)
    data = load_training_data(experiment, locate(experiment.data.text), 0, tokenizer_of(experiment))
    settings = resolve_settings("cpu", experiment.train.precision, Available.here())
    model = gpt.build(experiment.model, seed=0)
    adamw = optimizer.build(model, experiment.train, fused=settings.fused)
    step = TrainingStep(model, adamw, experiment, 0, settings)
    batch = torch.from_numpy(data.windows.batch(0))
    tokens = experiment.train.batch_size * experiment.train.sequence_length
    return tokens * data.val.size / len(data.val.tokens) / 1000, lambda: step(batch, 0)
