"""AdamW at a constant learning rate, and its state under the parameters' names."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gptlab.model.gpt import GPT
from gptlab.spec import TrainSpec


class AdamW(torch.optim.AdamW):
    """torch's own, less what its methods do for `torch.compile`: importing that takes a second, at their first call."""

    # functools.wraps sets `__wrapped__`; the types do not say so.
    add_param_group = Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    load_state_dict = Optimizer.load_state_dict.__wrapped__  # type: ignore[attr-defined]
    state_dict = Optimizer.state_dict.__wrapped__  # type: ignore[attr-defined]
    step = torch.no_grad()(torch.optim.AdamW.step.__wrapped__)  # type: ignore[attr-defined]
    zero_grad = Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]


def build(model: GPT, spec: TrainSpec, *, fused: bool) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) whose weight decay reaches matrices and embeddings only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=fused)


def gradient_norm(model: GPT) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar.

    By way of the norms of rows: over the 38 million numbers of an embedding at once, PyTorch's float32 sum is 0.3% off
    on a CPU, and takes twice as long.
    """
    rows = [torch.linalg.vector_norm(p.grad, dim=-1).flatten() for p in model.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(rows))
    return norm


def clipped_update(optimizer: torch.optim.AdamW, norm: Tensor, max_norm: float) -> None:
    """One step of AdamW on gradients whose norm is clipped to `max_norm` (Pascanu et al. 2013, section 3.2), then none.

    Fused AdamW divides by a scale while it reads the gradients, so that clipping needs no pass of its own.
    """
    scale = (norm / max_norm).clamp(min=1)
    if optimizer.defaults["fused"]:
        cast(Any, optimizer).grad_scale = None if norm.device.type == "cpu" and scale == 1 else scale
    else:
        for group in optimizer.param_groups:
            torch._foreach_div_([parameter.grad for parameter in group["params"]], scale)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def state_tensors(model: GPT, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The state as `<parameter name>/{exp_avg,exp_avg_sq,step}`; empty before the first step."""
    state = optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }


def load_state_tensors(model: GPT, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Undo `state_tensors`: the optimizer goes on in these very tensors, where they are on its device.

    Raises:
        KeyError: A parameter has no state among the tensors.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    keys = ("step", "exp_avg", "exp_avg_sq")
    state = {index: {key: tensors[f"{name}/{key}"] for key in keys} for index, name in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
