"""Adam with L2 regularization (Kingma and Ba 2015), which AdamW replaces by decoupled weight decay."""

import torch

from gptlab.spec import TrainSpec


def adam_l2(parameters: list[tuple[str, torch.nn.Parameter]], spec: TrainSpec) -> torch.optim.Optimizer:
    """Return torch's Adam; the spec's weight decay is added to the gradient of matrices and embeddings."""
    groups = [
        {"params": [p for _, p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps)
