"""torch's `Linear` and `Embedding` without the initial values that torch draws; `gptlab.model.gpt.build` sets ours.

Drawing the reference model's takes 0.8 s on the CPU. On "meta" it imports `torch.compile`, 0.9 s.
"""

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` with uninitialized weights."""

    def reset_parameters(self) -> None:
        """Leave weight and bias uninitialized."""


class Embedding(nn.Embedding):
    """`nn.Embedding` with uninitialized weights."""

    def reset_parameters(self) -> None:
        """Leave the weight uninitialized."""
