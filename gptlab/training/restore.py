"""Reading checkpoints. Nothing in a file is believed before size, checksum, names, shapes and dtypes are checked.

Files are read, not mapped: one that shrinks under a map kills the process, and one that is edited changes the tensors.
They are read once, into the memory in which training goes on. It is taken after the file was opened: so there are as
many bytes as the spec says that there are parameters.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

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
    opened_tensors,
)
from gptlab.training.tensors import Hash, Shapes, Tensors, read_tensors


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
            with ThreadPoolExecutor() as threads:  # one per file
                weights = threads.submit(_weights, checkpoint, spec)
                moments = threads.submit(_moments, checkpoint, spec)
            return State(checkpoint, weights.result(), moments.result())
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
    return model_of(_weights(checkpoint, spec), spec).eval()


def model_of(weights: Tensors, spec: ModelSpec) -> GPT:
    """A model whose parameters are these very tensors."""
    model = gpt.empty(spec, "meta")
    model.load_state_dict(weights, assign=True)
    return model


def weight_shapes(spec: ModelSpec) -> Shapes:
    """The shape of each of the model's weights, all of them float32."""
    return {name: tuple(tensor.shape) for name, tensor in gpt.empty(spec, "meta").state_dict().items()}


def read_weights(path: Path, spec: ModelSpec, digest: Hash, expected: str) -> Tensors:
    """The weights in a file that no manifest speaks for, if it has the expected digest.

    Raises:
        GptlabError: It is missing, damaged or another model's.
    """
    with opened_tensors(path, spec, None) as (file, size):
        return read_tensors(path, file, size, weight_shapes(spec), digest, expected)


def _weights(checkpoint: Checkpoint, spec: ModelSpec) -> Tensors:
    return _read(checkpoint, MODEL, spec, weight_shapes)


def _moments(checkpoint: Checkpoint, spec: ModelSpec) -> Tensors:
    tensors = _read(checkpoint, OPTIMIZER, spec, _moment_shapes)
    for name, tensor in tensors.items():
        if name.endswith("/step") and not tensor >= 1:  # AdamW divides by what it has after so many
            path = checkpoint.directory / OPTIMIZER
            raise GptlabError(f"{path} has {name} as {tensor.item()}, which no training comes to")
    return tensors


def _moment_shapes(spec: ModelSpec) -> Shapes:
    return {
        f"{name}/{key}": () if key == "step" else shape
        for name, shape in weight_shapes(spec).items()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def _read(checkpoint: Checkpoint, name: str, spec: ModelSpec, shapes: Callable[[ModelSpec], Shapes]) -> Tensors:
    path, expected = checkpoint.directory / name, checkpoint.manifest.files[name]
    with opened_tensors(path, spec, expected) as (file, size):
        return read_tensors(path, file, size, shapes(spec), xxhash.xxh3_128(), expected.xxh3_128)
