"""Reading checkpoints. Nothing in a file is believed before size, checksum, names, shapes and dtypes are checked.

Files are read, not mapped: one that shrinks under a map kills the process, and one that is edited changes the tensors.
A model is built after its file was read: so there are as many bytes as the spec says that there are parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from gptlab.errors import GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.checkpoints import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    list_checkpoints,
    read_tensor_file,
)

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class State:
    """All tensors of a checkpoint that training can go on from."""

    checkpoint: Checkpoint
    weights: Tensors
    moments: Tensors


def newest_state(run_directory: Path, spec: ModelSpec, notice: Callable[[str], None]) -> State | None:
    """The newest checkpoint to go on from that is whole; a damaged one is passed over with a notice.

    Raises:
        GptlabError: There are checkpoints, and none is whole.
    """
    damage = None
    committed = list_checkpoints(run_directory)
    whole = {checkpoint.directory for checkpoint in committed}
    for directory in sorted((run_directory / CHECKPOINTS).glob("step-*")):
        if directory not in whole:  # it was committed once
            damage = GptlabError(f"{directory / MANIFEST} is missing or damaged")
            notice(f"{damage}; the checkpoint before it is used, if there is one")
    for checkpoint in reversed(committed):
        if not checkpoint.resumable:
            continue
        try:
            return State(checkpoint, _weights(checkpoint, spec), _moments(checkpoint, spec))
        except GptlabError as error:
            damage = error
            notice(f"{error}; the checkpoint before it is used, if there is one")
    if damage:
        raise GptlabError(f"no checkpoint is whole: {damage}; start again with --fresh")
    return None


def load_model(checkpoint: Checkpoint, spec: ModelSpec) -> GPT:
    """The model of a checkpoint, on the CPU and in evaluation mode.

    Raises:
        GptlabError: The file is damaged or another model's.
    """
    weights = _weights(checkpoint, spec)
    model = gpt.empty(spec)
    model.load_state_dict(weights)
    return model.eval()


def weight_shapes(spec: ModelSpec) -> Shapes:
    """The shape of each of the model's weights, all of them float32."""
    return {name: tuple(tensor.shape) for name, tensor in gpt.empty(spec, "meta").state_dict().items()}


def read_tensors(path: Path, content: bytes, shapes: Shapes) -> Tensors:
    """The tensors in a file's bytes.

    Raises:
        GptlabError: They are not exactly those of `shapes`, in float32; the message names file and tensor.
    """
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error
    for name in sorted(shapes.keys() | tensors.keys()):
        wanted, given = shapes.get(name), tensors.get(name)
        if given is None:
            raise GptlabError(f"{path} lacks the tensor {name}")
        if wanted is None:
            raise GptlabError(f"{path} has a tensor {name}, which this model has not")
        if tuple(given.shape) != wanted or given.dtype != torch.float32:
            raise GptlabError(
                f"{path} has {name} as {list(given.shape)} {given.dtype}, but this model's is {list(wanted)} float32"
            )
    return tensors


def _weights(checkpoint: Checkpoint, spec: ModelSpec) -> Tensors:
    path = checkpoint.directory / MODEL
    content = read_tensor_file(path, spec, checkpoint.manifest.files[MODEL])
    return read_tensors(path, content, weight_shapes(spec))


def _moments(checkpoint: Checkpoint, spec: ModelSpec) -> Tensors:
    path = checkpoint.directory / OPTIMIZER
    content = read_tensor_file(path, spec, checkpoint.manifest.files[OPTIMIZER])
    shapes = {
        f"{name}/{key}": () if key == "step" else shape
        for name, shape in weight_shapes(spec).items()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    tensors = read_tensors(path, content, shapes)
    for name, tensor in tensors.items():
        if name.endswith("/step") and not tensor >= 1:  # AdamW divides by what it has after so many
            raise GptlabError(f"{path} has {name} as {tensor.item()}, which no training comes to")
    return tensors
