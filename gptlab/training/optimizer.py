"""AdamW at a constant learning rate, and its state under the parameters' names."""

import torch
from torch import Tensor

from gptlab.model.gpt import GPT
from gptlab.spec import TrainSpec


def build(model: GPT, spec: TrainSpec, *, fused: bool) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) whose weight decay reaches matrices and embeddings only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=fused)


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
