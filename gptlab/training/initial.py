"""The initial weights of a run: drawn from its seed, or taken from another run (a warm start)."""

import hashlib
from pathlib import Path

import xxhash

from gptlab.checkpoints.manifest import MODEL, checkpoint_directory, open_tensors, select_checkpoint
from gptlab.checkpoints.read import read_weights
from gptlab.checkpoints.tensors import Tensors
from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.records import InitialWeights, RunRecord
from gptlab.tracking.run import find_run, run_directories


def find_initial_weights(reference: str) -> InitialWeights:
    """Find and verify the weights that `RUN@STEP` names; for `RUN`, the newest.

    Raises:
        BadInputError: There is no such run or checkpoint, or the weights are damaged.
        GptlabError: The run cannot be loaded.
    """
    name, at, step = reference.rpartition("@")
    if at and not step.isdecimal():
        raise BadInputError(f"--from expects RUN or RUN@STEP, not '{reference}'")
    run = find_run(name if at else reference)
    checkpoint = select_checkpoint(run.directory, int(step) if at else None)
    path = checkpoint.directory / MODEL
    expected = checkpoint.manifest.files[MODEL]
    try:
        with open_tensors(path, run.record.spec.model, expected) as (file, _):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        read_weights(path, run.record.spec.model, xxhash.xxh3_128(), expected.xxh3_128)
    except GptlabError as error:
        raise BadInputError(f"{error}; choose another step") from error
    return InitialWeights(
        run=run.id,
        step=checkpoint.step,
        path=str(path),
        sha256=sha256,
        tokenizer_sha256=run.record.tokenizer_sha256,
    )


def check_initial_weights(weights: InitialWeights, spec: ModelSpec) -> None:
    """Check that a model of this spec can start from the weights.

    Raises:
        BadInputError: The weights belong to another model, or are missing or damaged.
    """
    _read(weights, spec)


def initial_model(record: RunRecord) -> GPT:
    """Return the run's model at step 0, on the CPU.

    Raises:
        BadInputError: The weights of a warm start are missing or damaged.
    """
    parent = record.initial_weights
    if parent is None:
        return gpt.build(record.spec.model, record.seed)
    return gpt.with_weights(record.spec.model, _read(parent, record.spec.model))


def _read(weights: InitialWeights, spec: ModelSpec) -> Tensors:
    errors = []
    for path in _places(weights):
        try:
            return read_weights(path, spec, hashlib.sha256(), weights.sha256)
        except GptlabError as error:
            errors.append(error)
    raise BadInputError(f"{errors[0]}; the run starts from {weights.run} at step {weights.step}") from errors[0]


def _places(weights: InitialWeights) -> list[Path]:
    """Where the weights may be: where they were, else in the run of that id in the runs directory."""
    moved = [directory for directory in run_directories() if directory.name == weights.run]
    return [Path(weights.path), *(checkpoint_directory(directory, weights.step) / MODEL for directory in moved)]
