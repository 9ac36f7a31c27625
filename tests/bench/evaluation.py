"""Validation loss vs. evaluating the windows as in training: batch by batch, with full logits."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from _pairs import Work, interleave_processes
from _table import Row

from gptlab import catalog
from gptlab.data.tokens import Split
from gptlab.data.windows import validation_starts, windows_at
from gptlab.model import gpt
from gptlab.training.evaluate import evaluate
from gptlab.training.memory import keep_freed_memory
from gptlab.training.settings import Available, resolve_settings

CASES = {"baseline": 160, "tiny": 512}
"""Number of windows by experiment."""
PAIRS = 5


def rows() -> Iterator[Row]:
    """Speed and memory."""
    for name, windows in CASES.items():
        costs = interleave_processes({"ours": ours, "theirs": theirs}, (name, windows), PAIRS)
        tokens = windows * catalog.find(name).train.sequence_length
        what, reference = f"validation of {name}, {windows} windows", "full logits, training batch size"
        for clock in ("wall", "cpu"):
            speeds = {side: [tokens / getattr(one, f"{clock}_s") for one in took] for side, took in costs.items()}
            yield Row("evaluation", what, reference, "tokens/s", **speeds, clock=clock)
        yield Row(
            "evaluation", what, reference, "peak MiB", **{side: [took[-1].peak_mib] for side, took in costs.items()}
        )


def ours(name: str, windows: int) -> Work:
    """As in training and `gptlab eval`."""
    keep_freed_memory()
    train = catalog.find(name).train
    model, val = gpt.build(catalog.find(name).model, seed=0), _split(train.sequence_length * windows + 1)
    starts = validation_starts(val, train.sequence_length, windows)
    settings = resolve_settings("cpu", "float32", Available.here())

    def work() -> None:
        evaluate(model, val, starts, sequence_length=train.sequence_length, settings=settings)

    return work


def theirs(name: str, windows: int) -> Work:
    """Full logits, in batches of the training batch size."""
    keep_freed_memory()
    train = catalog.find(name).train
    model, val = gpt.build(catalog.find(name).model, seed=0).eval(), _split(train.sequence_length * windows + 1)
    starts = validation_starts(val, train.sequence_length, windows)

    @torch.no_grad()
    def work() -> None:
        for first in range(0, windows, train.batch_size):
            batch = torch.from_numpy(
                windows_at(val.tokens, starts[first : first + train.batch_size], train.sequence_length)
            )
            F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="none")

    return work


def _split(tokens: int) -> Split:
    return Split(np.random.default_rng(0).integers(0, 50257, tokens).astype(np.uint16), 4 * tokens, "ab" * 32)
