"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2)."""

from typing import Any

import torch

from gptlab.spec import TrainSpec


class Lion(torch.optim.Optimizer):
    """The update is the sign of a mean of gradient and momentum, so every element moves by the learning rate."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter."""
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                state, grad = self.state[parameter], parameter.grad
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.sub_(torch.lerp(grad, momentum, beta1).sign_(), alpha=rate)
                momentum.lerp_(grad, 1 - beta2)


def lion(parameters: list[tuple[str, torch.nn.Parameter]], spec: TrainSpec) -> Lion:
    """Return Lion with the spec's betas, and weight decay on matrices and embeddings only.

    The paper uses betas (0.9, 0.99), a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many
    times larger.
    """
    groups = [
        {"params": [p for _, p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Lion(groups, {"lr": spec.learning_rate, "betas": spec.betas})
