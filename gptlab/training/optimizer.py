"""The optimizer of a spec, gradient clipping, and the optimizer's state by parameter name.

The default is AdamW. A part is a function that returns any `torch.optim.Optimizer`; see `OptimizerPart`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gptlab.checkpoints.manifest import ADAMW_STATE
from gptlab.errors import BadInputError, GptlabError, is_out_of_memory
from gptlab.experiment_files import reason
from gptlab.model.gpt import GPT
from gptlab.parts import call
from gptlab.spec import TrainSpec
from gptlab.training import optimizer_state
from gptlab.training.adamw import AdamW
from gptlab.training.settings import Settings

NamedParameters = list[tuple[str, nn.Parameter]]


class OptimizerPart(Protocol):
    """`train.optimizer`."""

    def __call__(self, parameters: NamedParameters, spec: TrainSpec) -> torch.optim.Optimizer:
        """Return an optimizer of all parameters, at the spec's learning rate.

        The rate of every group is set before each step: its first value times what the schedule makes of the spec's.
        What changes from step to step belongs into `optimizer.state` or the groups: tensors of any dtype and shape,
        numbers, text or None. Gradients are clipped before `step()` is called.
        """


def build(model: GPT, spec: TrainSpec, *, fused: bool, capturable: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters of a model.

    Args:
        model: The model.
        spec: Says which optimizer, and its hyperparameters.
        fused: Whether AdamW is one fused kernel.
        capturable: Whether AdamW can be captured as part of a CUDA graph. Its learning rate is a tensor then.

    Raises:
        BadInputError: A part is gone, returns no optimizer, or leaves out a parameter.
    """
    parameters = list(model.named_parameters())
    if not spec.has_own_optimizer:
        built = adamw(parameters, spec, fused=fused)
        if capturable:
            _make_capturable(built)
        return built
    optimizer = call("train.optimizer", spec.optimizer, parameters, spec)
    problem = _problem(optimizer, parameters)
    if problem:
        raise BadInputError(f"train.optimizer is {spec.optimizer}, which {problem}")
    return cast(torch.optim.Optimizer, optimizer)


def adamw(parameters: NamedParameters, spec: TrainSpec, *, fused: bool = False) -> AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices and embeddings only."""
    groups = [
        {"params": [p for _, p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=fused)


def _make_capturable(optimizer: AdamW) -> None:
    """Let AdamW be captured as part of a CUDA graph, which reads the learning rate from the device."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)


def gradient_norm(model: GPT) -> Tensor:
    """Return the Euclidean norm of all gradients, a scalar.

    On a CPU it is computed from the norms of the gradients' rows. Over the 38 million elements of an embedding at once,
    PyTorch's float32 sum is 0.3% off there and takes twice as long.
    """
    parameters = list(model.parameters())
    if parameters[0].device.type != "cpu":
        total: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return total
    rows = [torch.linalg.vector_norm(p.grad, dim=-1).flatten() for p in model.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(rows))
    return norm


def check_gradients(model: nn.Module) -> None:
    """Check that every parameter has a gradient.

    Raises:
        GptlabError: One has none, because the loss did not use it.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise GptlabError(f"{name} has no gradient: the model's part did not use it; remove it, or use it")


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer skips an update by itself where `may_update` tells it that a result is not finite."""
    return isinstance(optimizer, AdamW) and bool(optimizer.defaults["fused"])


def may_update(optimizer: torch.optim.Optimizer, finite: Tensor, settings: Settings) -> bool:
    """Return whether to call `clipped_update`, given whether loss and gradients are finite, a scalar.

    On an asynchronous device reading `finite` would wait. There fused AdamW skips the update by itself.
    """
    if settings.asynchronous and settings.fused:
        cast(Any, optimizer).found_inf = (~finite).float()
    return settings.asynchronous or bool(finite)


def clipped_update(optimizer: torch.optim.Optimizer, norm: Tensor, max_norm: float) -> None:
    """Clip the gradients to `max_norm` (Pascanu et al. 2013, section 3.2), update the parameters, clear the gradients.

    Fused AdamW divides the gradients by `grad_scale` while it reads them, so clipping needs no separate pass.

    Args:
        optimizer: An optimizer over parameters that all have gradients.
        norm: The gradients' norm, from `gradient_norm`.
        max_norm: Maximum norm; infinity disables clipping.

    Raises:
        GptlabError: An optimizer of the user's own raised an error.
    """
    _divide_gradients(optimizer, (norm / max_norm).clamp(min=1))
    _step(optimizer)
    optimizer.zero_grad(set_to_none=True)


def _divide_gradients(optimizer: torch.optim.Optimizer, scale: Tensor) -> None:
    """Divide the gradients by a scalar, now or, with fused AdamW, in the update."""
    if isinstance(optimizer, AdamW) and optimizer.defaults["fused"]:
        cast(Any, optimizer).grad_scale = None if scale.device.type == "cpu" and scale == 1 else scale
    else:
        for group in optimizer.param_groups:
            torch._foreach_div_([parameter.grad for parameter in group["params"]], scale)


def state_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of the state by `<parameter name>/<key>`; AdamW has none before the first step.

    Raises:
        GptlabError: An optimizer of the user's own has state that cannot be saved.
    """
    return optimizer_state.tensors_of(model, optimizer)


def state_values(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state besides the tensors, as JSON; AdamW has none.

    Raises:
        GptlabError: An optimizer of the user's own has state that cannot be saved.
    """
    return {} if isinstance(optimizer, AdamW) else optimizer_state.values_of(model, optimizer)


def load_state(
    model: GPT, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Load what `state_tensors` and `state_values` returned. Tensors on the right device are used without a copy.

    Raises:
        KeyError: AdamW's state of a parameter is missing from `tensors`.
        GptlabError: The state belongs to another model or optimizer.
    """
    if isinstance(optimizer, AdamW):
        load_state_tensors(model, optimizer, tensors)
    else:
        optimizer_state.restore(model, optimizer, tensors, values)


def load_state_tensors(model: GPT, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load AdamW's state.

    Raises:
        KeyError: A parameter's state is missing from `tensors`.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: {key: tensors[f"{name}/{key}"] for key in ADAMW_STATE} for index, name in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _step(optimizer: torch.optim.Optimizer) -> None:
    try:
        optimizer.step()
    except Exception as error:
        if isinstance(optimizer, AdamW) or is_out_of_memory(error):
            raise
        raise GptlabError(f"the optimizer {type(optimizer).__name__} failed in a step: {reason(error)}") from error


def _problem(optimizer: Any, parameters: NamedParameters) -> str:
    """Return what is wrong with an optimizer of the user's own; empty if it has each parameter once."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"returns {type(optimizer).__name__}, not a torch.optim.Optimizer"
    names = {parameter: name for name, parameter in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if names.pop(parameter, None) is None:
                return "has a tensor that is no parameter of the model, or has a parameter twice"
    return f"leaves out {', '.join(list(names.values())[:3])}; give it every parameter" if names else ""
