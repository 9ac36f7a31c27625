"""Activations that a spec can name: functions of a tensor of any shape, elementwise."""

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as in GPT-2 (Hendrycks and Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


def gelu_exact(x: Tensor) -> Tensor:
    """GELU, x · Φ(x) with the normal distribution's Φ (Hendrycks and Gimpel 2016)."""
    return F.gelu(x)


def relu(x: Tensor) -> Tensor:
    """max(x, 0) (Nair and Hinton 2010)."""
    return F.relu(x)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021, "Primer")."""
    return F.relu(x).square()


def silu(x: Tensor) -> Tensor:
    """Swish, x · sigmoid(x) (Hendrycks and Gimpel 2016; Ramachandran et al. 2017)."""
    return F.silu(x)
