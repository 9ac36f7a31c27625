"""Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al. 2013)."""

import torch

from gptlab.spec import TrainSpec


def sgd(parameters: list[tuple[str, torch.nn.Parameter]], spec: TrainSpec) -> torch.optim.Optimizer:
    """Return torch's SGD with the first of the spec's betas as momentum, and without weight decay."""
    return torch.optim.SGD([parameter for _, parameter in parameters], lr=spec.learning_rate, momentum=spec.betas[0])
