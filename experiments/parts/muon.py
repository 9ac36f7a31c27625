"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, orthogonalized.

The matrices of the blocks are updated by Muon, and embeddings, the output layer and vectors by AdamW at the same rate.
Here Newton-Schulz runs in the parameters' own dtype, not in bfloat16. An update is scaled by 0.2 · √max(rows, columns),
so that its elements are as large as AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
"""

from typing import Any

import torch
from torch import Tensor

from gptlab.spec import TrainSpec

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon for groups with `muon`, AdamW (Loshchilov and Hutter 2019) for the others."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter."""
        for group in self.param_groups:
            direction = _muon if group["muon"] else _adam
            for parameter in group["params"]:
                update = direction(parameter.grad, self.state[parameter], group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])


def muon(parameters: list[tuple[str, torch.nn.Parameter]], spec: TrainSpec) -> Muon:
    """Return Muon for the matrices of the blocks and AdamW for all else, with the spec's rate and weight decay."""
    matrices = [p for name, p in parameters if p.ndim == 2 and name.startswith("blocks.")]
    tables = [p for name, p in parameters if p.ndim >= 2 and not (p.ndim == 2 and name.startswith("blocks."))]
    vectors = [p for _, p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "muon": True, "weight_decay": spec.weight_decay},
        {"params": tables, "muon": False, "weight_decay": spec.weight_decay},
        {"params": vectors, "muon": False, "weight_decay": 0.0},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        {"lr": spec.learning_rate, "betas": spec.betas, "eps": spec.eps},
    )


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return nearly the closest matrix with equal singular values, by Newton-Schulz iteration (Bernstein 2024)."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _muon(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state["momentum"] = torch.zeros_like(grad)
    momentum = state["momentum"].mul_(MOMENTUM).add_(grad)
    return orthogonalize(grad + MOMENTUM * momentum) * (0.2 * max(grad.shape) ** 0.5)


def _adam(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state.update(step=0, mean=torch.zeros_like(grad), square=torch.zeros_like(grad))
    (beta1, beta2), mean, square = group["betas"], state["mean"], state["square"]
    state["step"] += 1
    mean.lerp_(grad, 1 - beta1)
    square.lerp_(grad.square(), 1 - beta2)
    corrected = square / (1 - beta2 ** state["step"])
    return mean / (1 - beta1 ** state["step"]) / (corrected.sqrt() + group["eps"])
