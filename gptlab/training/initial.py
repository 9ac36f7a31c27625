"""Where a run's weights come from: its seed, or another run."""

import hashlib
from pathlib import Path

from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.checkpoints import MODEL, pick, read_tensor_file
from gptlab.tracking.records import InitialWeights
from gptlab.tracking.run import Run, find
from gptlab.training.restore import Tensors, read_tensors, weight_shapes


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
    try:
        content = read_tensor_file(path, run.record.spec.model, checkpoint.manifest.files[MODEL])
    except GptlabError as error:
        raise BadInputError(f"{error}; choose another step") from error
    sha256 = hashlib.sha256(content).hexdigest()
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
    weights = _read(parent, record.spec.model)
    model = gpt.empty(record.spec.model)
    model.load_state_dict(weights)
    return model


def _read(weights: InitialWeights, spec: ModelSpec) -> Tensors:
    path = Path(weights.path)
    try:
        content = read_tensor_file(path, spec)
        if hashlib.sha256(content).hexdigest() != weights.sha256:
            raise GptlabError(f"{path} has changed: its sha256 is not {weights.sha256}")
        return read_tensors(path, content, weight_shapes(spec))
    except GptlabError as error:
        raise BadInputError(f"{error}; the run starts from {weights.run} at step {weights.step}") from error
