"""SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): a feed-forward layer whose hidden units are gated.

It has three matrices where the `mlp` has two, so its hidden width is 8/3 of the model's instead of 4 times, rounded so
that both have as equal a number of parameters as is possible.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.model.uninitialized import Linear
from gptlab.spec import ModelSpec


def hidden_width(spec: ModelSpec) -> int:
    """Return the hidden width at which SwiGLU and the mlp differ least in parameters.

    With C the model's width, the mlp has 8 C² parameters and SwiGLU 3 C per hidden unit. With biases, the mlp has 5 C
    more, and SwiGLU two per hidden unit and C.
    """
    width, bias = spec.n_embd, spec.bias
    return max(round((8 * width**2 + bias * 4 * width) / (3 * width + bias * 2)), 1)


class SwiGLU(nn.Module):
    """The product of a gate, silu(x W), and a linear layer, projected back to the model's width."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden = hidden_width(spec)
        self.gate = Linear(spec.n_embd, hidden, bias=spec.bias)
        self.expansion = Linear(spec.n_embd, hidden, bias=spec.bias)
        self.projection = Linear(hidden, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        return self.projection(F.silu(self.gate(x)) * self.expansion(x))
