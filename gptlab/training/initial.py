"""Where a run's weights come from: its seed, or another run."""

import hashlib
from pathlib import Path

import xxhash

from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.checkpoints import MODEL, opened_tensors, pick
from gptlab.tracking.records import InitialWeights
from gptlab.tracking.run import Run, find
from gptlab.training.restore import model_of, read_weights
from gptlab.training.tensors import Tensors


def weights_of(reference: str) -> InitialWeights:
    """The weights that `RUN@STEP` names, or the newest of `RUN`.

    Raises:
        BadInputError: There is no such run or checkpoint.
    """
    name, at, step = reference.rpartition("@")
    if at and not step.isdecimal():
        raise BadInputError(f"--from wants RUN@STEP, not '{reference}'")
    run = find(name if at else reference)
    checkpoint = pick(run.directory, int(step) if at else None)
    path = checkpoint.directory / MODEL
    expected = checkpoint.manifest.files[MODEL]
    try:
        with opened_tensors(path, run.record.spec.model, expected) as (file, _):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        read_weights(path, run.record.spec.model, xxhash.xxh3_128(), expected.xxh3_128)
    except GptlabError as error:
        raise BadInputError(f"{error}; choose another step") from error
    return InitialWeights(run=run.id, step=checkpoint.step, path=str(path), sha256=sha256)


def check_weights_fit(weights: InitialWeights, spec: ModelSpec) -> None:
    """See that a warm start is possible.

    Raises:
        BadInputError: The weights are another model's, or no longer where they were.
    """
    _read(weights, spec)


def initial_model(run: Run) -> GPT:
    """The run's model before its first step, on the CPU.

    Raises:
        BadInputError: The weights of a warm start are no longer where they were.
    """
    record = run.record
    parent = record.initial_weights
    if parent is None:
        return gpt.build(record.spec.model, record.seed)
    return model_of(_read(parent, record.spec.model), record.spec.model)


def _read(weights: InitialWeights, spec: ModelSpec) -> Tensors:
    try:
        return read_weights(Path(weights.path), spec, hashlib.sha256(), weights.sha256)
    except GptlabError as error:
        raise BadInputError(f"{error}; the run starts from {weights.run} at step {weights.step}") from error
