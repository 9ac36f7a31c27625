"""The state of any `torch.optim.Optimizer`, so that training resumes with the same bits.

torch's own `load_state_dict` converts state to the parameter's dtype. Here every tensor keeps its dtype and shape, and
Python values of the state and of the groups keep their type. What cannot be restored exactly is refused when it is
saved, never dropped.

- Tensors go to `optimizer.safetensors`, as `<parameter>/<key>`, or `param_groups/<index>/<key>` for those in groups.
- Python values go to the manifest under the same names.
- The learning rate is not part of the state: it is a function of (step, spec).
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.checkpoints.tensors import DTYPES
from gptlab.errors import GptlabError
from gptlab.untrusted import MAX_DOCUMENT_BYTES

GROUPS = "param_groups"
NOT_STATE = frozenset({"params", "param_names", "lr", "initial_lr"})
MAX_BYTES = MAX_DOCUMENT_BYTES // 2
"""Of the values besides tensors: the manifest that holds them must stay readable."""
ON_HOST = {"device": "cpu"}
"""Value of a tensor that is in host memory although its parameter is not."""


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of the state by name.

    Raises:
        GptlabError: A tensor cannot be saved and restored exactly.
    """
    tensors = {name: value for name, value, _ in _state(model, optimizer) if isinstance(value, Tensor)}
    memory = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values() or tensor.is_quantized:
            raise GptlabError(f"the optimizer's state {name} is {tensor.dtype}, {tensor.layout}; it cannot be saved")
        if tensor.numel() and (other := memory.setdefault(tensor.untyped_storage().data_ptr(), name)) != name:
            raise GptlabError(f"the optimizer's state {name} shares memory with {other}; give each its own tensor")
    return tensors


def values_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the other values of the state by name, as JSON.

    Raises:
        GptlabError: A value cannot be saved and restored exactly.
    """
    values = {}
    for name, value, parameter in _state(model, optimizer):
        if not isinstance(value, Tensor):
            values[name] = _encode(name, value)
        elif parameter is not None and value.device != parameter.device:
            values[name] = ON_HOST
    if (size := len(json.dumps(values, indent=2))) > MAX_BYTES:
        raise GptlabError(
            f"the optimizer's state has {size:,} bytes besides its tensors, more than {MAX_BYTES:,}; keep it in tensors"
        )
    return dict(sorted(values.items()))


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Give a new optimizer the state that `tensors_of` and `values_of` returned. Tensors are used without a copy.

    Raises:
        GptlabError: The state belongs to other parameters or groups.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in [*tensors.items(), *values.items()]:
        owner, _, key = name.partition("/")
        if isinstance(value, Tensor):
            parameter = parameters.get(owner)
            if parameter is not None and values.get(name) != ON_HOST:
                value = value.to(parameter.device)
        elif value == ON_HOST:
            continue
        else:
            value = _decode(value)
        if owner in parameters:
            optimizer.state[parameters[owner]][key] = value
        else:
            _group(optimizer, name)[key.partition("/")[2]] = value


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any, Tensor | None]]:
    """Yield name, value and parameter of everything in the state; None for the parameter of what is in a group."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for owner, state in optimizer.state.items():
        if owner not in names:
            raise GptlabError(f"the optimizer keeps state under {owner!r:.80}, which is no parameter of the model")
        for key, value in state.items():
            yield f"{names[owner]}/{key}", value, owner
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in NOT_STATE and not callable(value):  # a function does not change
                yield f"{GROUPS}/{index}/{key}", value, None


def _group(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    owner, _, rest = name.partition("/")
    index = rest.partition("/")[0]
    if owner == GROUPS and index.isdecimal() and int(index) < len(optimizer.param_groups):
        return optimizer.param_groups[int(index)]
    raise GptlabError(f"the checkpoint has optimizer state {name:.80}, which this model and optimizer do not have")


def _encode(name: str, value: Any) -> Any:
    """Return a Python value as JSON that `_decode` turns back into an equal value of the same type."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(float(value))}
        case list():
            return [_encode(name, each) for each in value]
        case tuple():
            return {"tuple": [_encode(name, each) for each in value]}
    raise GptlabError(
        f"the optimizer's state {name} is a {type(value).__name__}, which cannot be saved; "
        "keep tensors, numbers, text or None"
    )


def _decode(value: Any) -> Any:
    match value:
        case list():
            return [_decode(each) for each in value]
        case {"tuple": list(each)}:
            return tuple(map(_decode, each))
        case {"float": str(text)}:
            return float(text)
    return value
