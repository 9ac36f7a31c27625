"""Feed-forward layers with other activations than GELU, as examples of parts.

The names `relu`, `relu2` and `gelu-exact` of `model.activation` compute the same.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.model.uninitialized import Linear
from gptlab.spec import ModelSpec


class ReLUFeedForward(nn.Module):
    """Two linear layers with a ReLU between them (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.expansion = Linear(spec.n_embd, 4 * spec.n_embd, bias=spec.bias)
        self.projection = Linear(4 * spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        return self.projection(F.relu(self.expansion(x)))


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021, "Primer: Searching for Efficient Transformers")."""
    return F.relu(x).square()


def exact_gelu(x: Tensor) -> Tensor:
    """GELU without the tanh approximation (Hendrycks and Gimpel 2016)."""
    return F.gelu(x)
