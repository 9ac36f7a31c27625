"""What a run begins with: weights drawn from its seed, or a checkpoint of another run, its parent.

A warm start (`--from`) takes the parent's weights. A branch (`--branch`) takes its weights, its optimizer state and its
number of steps.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import xxhash
from pydantic import JsonValue

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, Checkpoint, open_tensors, select_checkpoint
from gptlab.checkpoints.read import read_optimizer, read_weights
from gptlab.checkpoints.tensors import Hash, Tensors
from gptlab.errors import BadInputError, GptlabError
from gptlab.huggingface.directory import find_imported_weights, imported_model
from gptlab.huggingface.layout import find_directory
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import Experiment, ModelSpec, TrainSpec, flatten
from gptlab.terminal.text import plural
from gptlab.tracking.lineage import places
from gptlab.tracking.records import Branch, ImportedWeights, InitialWeights, ParentCheckpoint, RunRecord
from gptlab.tracking.run import Run, find_run, run_directories
from gptlab.tracking.space import check_optimizer_state_is_kept
from gptlab.training import optimizer

Read = Callable[[Path, ModelSpec, Hash, str], Tensors]

CHANGEABLE = ("model.dropout",)
"""Fields of the model that a branch may change."""
FIXED = ("train.optimizer",)
"""Other fields that a branch may not change, besides the tokenizer, which `plan` checks."""


def find_start(reference: str, spec: ModelSpec) -> InitialWeights | ImportedWeights:
    """Find and verify the weights that `--from` names: those of `RUN@STEP`, or of a directory of `transformers`.

    Raises:
        BadInputError: See `find_initial_weights` and `find_imported_weights`.
        GptlabError: The run cannot be loaded.
    """
    directory = find_directory(reference)
    return find_imported_weights(directory, spec) if directory else find_initial_weights(reference)


def find_initial_weights(reference: str) -> InitialWeights:
    """Find and verify the weights that `RUN@STEP` names; for `RUN`, the newest.

    Raises:
        BadInputError: There is no such run or checkpoint, or the weights are damaged.
        GptlabError: The run cannot be loaded.
    """
    run, checkpoint = _find(reference, "--from", resumable=False)
    return InitialWeights(
        run=run.id,
        step=checkpoint.step,
        path=str((checkpoint.directory / MODEL).absolute()),
        sha256=_verify(run, checkpoint, MODEL, read_weights),
        tokenizer_sha256=run.record.tokenizer_sha256,
    )


def find_branch(reference: str, experiment: Experiment) -> Branch:
    """Find and verify the checkpoint that `RUN@STEP` names; for `RUN`, the newest resumable one.

    Raises:
        BadInputError: There is no such run or resumable checkpoint, it is damaged, or the experiment cannot continue
            from it: it has another model, or no steps after it.
        GptlabError: The run cannot be loaded.
    """
    run, checkpoint = _find(reference, "--branch", resumable=True)
    record, step, progress = run.record, checkpoint.step, checkpoint.manifest.progress
    _check_fields(run, experiment)
    return Branch(
        run=run.id,
        step=step,
        path=str((checkpoint.directory / MODEL).absolute()),
        sha256=_verify(run, checkpoint, MODEL, read_weights),
        optimizer_sha256=_verify(run, checkpoint, OPTIMIZER, _optimizer_reader(record.spec)),
        optimizer_values=_optimizer_values(checkpoint, record.spec, experiment),
        seed=record.seed,
        tokens=record.tokens_at(step),
        flops=record.flops_at(step),
        elapsed_s=progress.elapsed_s,
        cpu_s=progress.cpu_s,
        text_sha256=record.text.sha256,
        tokenizer_sha256=record.tokenizer_sha256,
        sequence_length=record.spec.train.sequence_length,
        windows=record.window_offset + step * record.spec.train.batch_size,
    )


def check_initial_weights(weights: ParentCheckpoint, spec: ModelSpec) -> None:
    """Check that a model of this spec can start from the weights.

    Raises:
        BadInputError: The weights belong to another model, or are missing or damaged.
    """
    _read(weights, weights.sha256, MODEL, spec, read_weights)


def check_branch(branch: Branch, seed: int, train: TrainSpec) -> None:
    """Check that a run with this seed, number of steps and schedule can continue from a checkpoint.

    Raises:
        BadInputError: It cannot.
    """
    if seed != branch.seed:
        raise BadInputError(
            f"--seed {seed} contradicts --branch: {branch.run} has seed {branch.seed}, which its branches keep; leave "
            "--seed out"
        )
    if train.horizon and train.horizon <= branch.step:
        raise BadInputError(
            f"train.horizon {train.horizon} ends before the branch begins: steps count from 0, and {branch.run} is at "
            f"step {branch.step}; set a larger one"
        )
    check_steps(branch, train.steps)


def check_steps(branch: Branch, steps: int) -> None:
    """Check that a branch has steps to train.

    Raises:
        BadInputError: It ends at or before the step where it begins.
    """
    if steps <= branch.step:
        raise BadInputError(
            f"{plural(steps, 'step ends', 'steps end')} before the branch begins: steps count from 0, and "
            f"{branch.run} is at step {branch.step}; pass a larger number, such as --steps {2 * branch.step}"
        )


def initial_model(record: RunRecord) -> GPT:
    """Return the run's model at step 0, on the CPU.

    Raises:
        BadInputError: The weights of a warm start are missing or damaged.
    """
    weights, spec = record.initial_weights, record.spec.model
    if record.imported_weights:
        return imported_model(record.imported_weights, spec)
    if weights is None:
        return gpt.build(spec, record.seed)
    return gpt.with_weights(spec, _read(weights, weights.sha256, MODEL, spec, read_weights))


def read_branch(branch: Branch, spec: Experiment) -> tuple[Tensors, Tensors]:
    """Return the weights and the tensors of the optimizer state that a branch continues from.

    Raises:
        BadInputError: They are missing or damaged, or belong to another model.
    """
    weights = _read(branch, branch.sha256, MODEL, spec.model, read_weights)
    return weights, _read(branch, branch.optimizer_sha256, OPTIMIZER, spec.model, _optimizer_reader(spec))


def _optimizer_reader(spec: Experiment) -> Read:
    return partial(read_optimizer, is_adamw=not spec.train.has_own_optimizer)


def _optimizer_values(checkpoint: Checkpoint, theirs: Experiment, ours: Experiment) -> dict[str, JsonValue]:
    """Return the parent's optimizer values without the settings that the branch changes, such as a weight decay."""
    values = checkpoint.manifest.optimizer_values
    if not values:
        return {}
    model = gpt.empty(ours.model)
    old, new = (
        optimizer.state_values(model, optimizer.build(model, spec.train, fused=False)) for spec in (theirs, ours)
    )
    return {name: value for name, value in values.items() if old.get(name) == new.get(name)}


def _find(reference: str, option: str, *, resumable: bool) -> tuple[Run, Checkpoint]:
    name, at, step = reference.rpartition("@")
    if at and not (step.isdecimal() and step.isascii() and len(step) <= 18):
        raise BadInputError(f"{option} expects RUN or RUN@STEP, not '{reference}'")
    run = find_run(name if at else reference)
    if resumable and not at:
        check_optimizer_state_is_kept(run, run.history())
    return run, select_checkpoint(run.directory, int(step) if at else None, resumable=resumable)


def _verify(run: Run, checkpoint: Checkpoint, name: str, read: Read) -> str:
    """Return the SHA-256 of a checkpoint's file, after comparing it with the manifest."""
    path, expected, spec = checkpoint.directory / name, checkpoint.manifest.files[name], run.record.spec.model
    try:
        read(path, spec, xxhash.xxh3_128(), expected.xxh3_128)  # first: it refuses a file of an impossible size
        with open_tensors(path, spec, expected, any_size=True) as (file, _):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except GptlabError as error:
        raise BadInputError(f"{error}; choose another step") from error
    return sha256


def _check_fields(run: Run, experiment: Experiment) -> None:
    """Check that an experiment has the fields of a run that its branches keep."""
    theirs, ours = (dict(flatten(spec.model_dump(mode="json"))) for spec in (run.record.spec, experiment))
    fixed = [key for key in ours if key in FIXED or (key.startswith("model.") and key not in CHANGEABLE)]
    differing = [f"{key} is {ours[key]}, not {theirs[key]}" for key in fixed if ours[key] != theirs[key]]
    if differing:
        raise BadInputError(
            f"{experiment.name} cannot continue from {run.id}, because it has another model or optimizer: "
            f"{', '.join(differing)}; branches may change data, batches, rates and precision"
        )


def _read(parent: ParentCheckpoint, sha256: str, name: str, spec: ModelSpec, read: Read) -> Tensors:
    errors = []
    for path in places(parent, run_directories()):
        try:
            return read(path.with_name(name) if name != MODEL else path, spec, hashlib.sha256(), sha256)
        except GptlabError as error:
            errors.append(error)
    raise BadInputError(f"{errors[0]}; the run starts from {parent.run} at step {parent.step}") from errors[0]
