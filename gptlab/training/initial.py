"""Where a run's weights come from: its seed, or another run."""

from pathlib import Path

from gptlab.data.text import sha256_of
from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.checkpoints import MANIFEST, MODEL, digest_of, pick
from gptlab.tracking.run import InitialWeights, Run, find
from gptlab.training.restore import read_tensors, weight_shapes


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
    if not path.is_file() or digest_of(path) != checkpoint.manifest.files[MODEL]:
        raise BadInputError(f"{path} is missing or damaged: it is not what {MANIFEST} says; choose another step")
    return InitialWeights(run=run.id, step=checkpoint.step, path=str(path), sha256=sha256_of(path))


def check_weights_fit(weights: InitialWeights, spec: ModelSpec) -> None:
    """See that a warm start is possible.

    Raises:
        BadInputError: The weights are another model's.
    """
    path = Path(weights.path)
    try:
        read_tensors(path, path.read_bytes(), weight_shapes(spec))
    except GptlabError as error:
        raise BadInputError(str(error)) from error


def initial_model(run: Run) -> GPT:
    """The run's model before its first step, on the CPU.

    Raises:
        BadInputError: The weights of a warm start are no longer where they were.
    """
    record = run.record
    parent = record.initial_weights
    if parent is None:
        return gpt.build(record.spec.model, record.seed)
    path = Path(parent.path)
    if not path.is_file() or sha256_of(path) != parent.sha256:
        raise BadInputError(
            f"{run.id} starts from the weights of {parent.run} at step {parent.step}, which are no longer in {path}"
        )
    model = gpt.empty(record.spec.model)
    model.load_state_dict(read_tensors(path, path.read_bytes(), weight_shapes(record.spec.model)))
    return model
