"""RMSNorm (Zhang and Sennrich 2019): LayerNorm without the mean and without a bias."""

from torch import nn

from gptlab.spec import ModelSpec


def RMSNorm(spec: ModelSpec) -> nn.RMSNorm:  # noqa: N802 - named like the class that it returns
    """Return torch's RMSNorm of the model's width."""
    return nn.RMSNorm(spec.n_embd, eps=1e-5)
