"""Read checkpoints. A file is used only after its size, checksum, names, shapes and dtypes are checked.

Files are read, not memory-mapped: truncating a mapped file would kill the process, and editing it would change the
tensors. Each file is read once, directly into the tensors that training uses.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash

from gptlab.checkpoints.manifest import (
    MODEL,
    OPTIMIZER,
    Checkpoint,
    FileDigest,
    Manifest,
    Shapes,
    adamw_state_shapes,
    damaged_manifests,
    list_checkpoints,
    open_tensors,
)
from gptlab.checkpoints.tensors import Hash, Tensors, read_tensors
from gptlab.errors import GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec


@dataclass(frozen=True)
class SavedState:
    """All tensors of a resumable checkpoint."""

    checkpoint: Checkpoint
    weights: Tensors
    optimizer: Tensors
    rows_problem: str | None = None
    """What is wrong with the rows of metrics up to this checkpoint; None if they are as they were written."""


def read_newest_state(
    run_directory: Path,
    spec: ModelSpec,
    notice: Callable[[str], None],
    find_rows_problem: Callable[[Manifest], str | None] = lambda manifest: None,
    *,
    is_adamw: bool = True,
) -> SavedState | None:
    """Read the newest resumable checkpoint whose tensors and rows of metrics are intact.

    Others are skipped with a notice. If the rows of none are intact, the newest one with intact tensors is used.

    Args:
        run_directory: The run's directory.
        spec: The run's model.
        notice: Called with each problem.
        find_rows_problem: Returns what is wrong with the rows of metrics up to a checkpoint, if anything.
        is_adamw: Whether the optimizer is AdamW, whose state is known; any other state is read as it is.

    Returns:
        The tensors, or None if the run has no resumable checkpoint.

    Raises:
        GptlabError: A checkpoint is damaged, and no resumable one is intact.
    """
    damage = None
    for _, damage in sorted(damaged_manifests(run_directory).items()):
        notice(f"{damage}; using an older checkpoint if there is one")
    resumable = [checkpoint for checkpoint in list_checkpoints(run_directory) if checkpoint.resumable]
    problems = {checkpoint.step: find_rows_problem(checkpoint.manifest) for checkpoint in resumable}
    for checkpoint in sorted(resumable, key=lambda c: (problems[c.step] is None, c.step), reverse=True):
        try:
            state = replace(read_state(checkpoint, spec, is_adamw=is_adamw), rows_problem=problems[checkpoint.step])
        except GptlabError as error:
            damage = error
            notice(f"{error}; using an older checkpoint if there is one")
            continue
        newer = {problem for step, problem in sorted(problems.items()) if problem and step > checkpoint.step}
        for problem in newer:
            notice(f"{problem}; resuming from the checkpoint of step {checkpoint.step}, whose rows are intact")
        return state
    if damage:
        raise GptlabError(f"no checkpoint is intact: {damage}; start again with `gptlab run` and --fresh")
    return None


def read_state(checkpoint: Checkpoint, spec: ModelSpec, *, is_adamw: bool) -> SavedState:
    """Read a resumable checkpoint.

    Args:
        checkpoint: The checkpoint.
        spec: The run's model.
        is_adamw: See `read_newest_state`.

    Raises:
        GptlabError: A file is damaged or belongs to another model.
    """
    with ThreadPoolExecutor() as threads:  # one per file
        weights = threads.submit(_read_weights, checkpoint, spec)
        optimizer = threads.submit(_read_listed_optimizer, checkpoint, spec, is_adamw)
    return SavedState(checkpoint, weights.result(), optimizer.result())


def load_model(checkpoint: Checkpoint, spec: ModelSpec) -> GPT:
    """Load the model of a checkpoint on the CPU, in evaluation mode.

    Raises:
        GptlabError: The file is damaged or belongs to another model.
    """
    return gpt.with_weights(spec, _read_weights(checkpoint, spec)).eval()


def read_weights(path: Path, spec: ModelSpec, digest: Hash, expected: str) -> Tensors:
    """Read the weights in a file, without the manifest beside it.

    Args:
        path: A `model.safetensors`.
        spec: The model that the weights belong to.
        digest: A new hash object, to be updated with the file's bytes.
        expected: The digest that the file must have, in hexadecimal.

    Raises:
        GptlabError: The file is missing, damaged or belongs to another model.
    """
    with open_tensors(path, spec, None) as (file, size):
        return read_tensors(path, file, size, weight_shapes(spec), digest, expected, _buffer_dtypes(spec))


def read_optimizer(path: Path, spec: ModelSpec, digest: Hash, expected: str, *, is_adamw: bool) -> Tensors:
    """Read the optimizer state in a file, without the manifest beside it. Other arguments are those of `read_weights`.

    Args:
        path: An `optimizer.safetensors`.
        spec: See `read_weights`.
        digest: See `read_weights`.
        expected: See `read_weights`.
        is_adamw: Whether the optimizer is AdamW, whose state is known; any other state is read as it is.

    Raises:
        GptlabError: The file is missing, damaged or belongs to another model.
    """
    return _read_optimizer(path, spec, digest, expected, None, is_adamw)


def weight_shapes(spec: ModelSpec) -> Shapes:
    """Return the shapes of the model's weights by name; all are float32, except for buffers of parts."""
    return {name: tuple(tensor.shape) for name, tensor in gpt.empty(spec, "meta").state_dict().items()}


def _buffer_dtypes(spec: ModelSpec) -> dict[str, torch.dtype]:
    return {name: buffer.dtype for name, buffer in gpt.empty(spec, "meta").named_buffers()} if spec.has_parts else {}


def _read_weights(checkpoint: Checkpoint, spec: ModelSpec) -> Tensors:
    path, expected = checkpoint.directory / MODEL, checkpoint.manifest.files[MODEL]
    with open_tensors(path, spec, expected) as (file, size):  # the size is checked before a model of this spec is built
        digest, dtypes = xxhash.xxh3_128(), _buffer_dtypes(spec)
        return read_tensors(path, file, size, weight_shapes(spec), digest, expected.xxh3_128, dtypes)


def _read_listed_optimizer(checkpoint: Checkpoint, spec: ModelSpec, is_adamw: bool) -> Tensors:
    path, listed = checkpoint.directory / OPTIMIZER, checkpoint.manifest.files[OPTIMIZER]
    return _read_optimizer(path, spec, xxhash.xxh3_128(), listed.xxh3_128, listed, is_adamw)


def _read_optimizer(
    path: Path, spec: ModelSpec, digest: Hash, expected: str, listed: FileDigest | None, is_adamw: bool
) -> Tensors:
    """`listed` is what the manifest says about the file, whose size is checked first; None without a manifest."""
    with open_tensors(path, spec, listed, any_size=not is_adamw) as (file, size):
        shapes = adamw_state_shapes(_parameter_shapes(spec)) if is_adamw else None
        tensors = read_tensors(path, file, size, shapes, digest, expected)
    for name, tensor in tensors.items() if is_adamw else ():
        if name.endswith("/step") and not tensor >= 1:  # AdamW's bias correction divides by zero at step 0
            raise GptlabError(f"{path} has {name} as {tensor.item()}, which training never produces")
    return tensors


def _parameter_shapes(spec: ModelSpec) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in gpt.empty(spec, "meta").named_parameters()}
