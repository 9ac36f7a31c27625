"""Directories with a model of `GPT2LMHeadModel`, as `gptlab export` and `save_pretrained` write them.

They may be untrusted: their files are read as data, with bounds, and pickled weights are refused.
"""

from dataclasses import dataclass
from pathlib import Path

from gptlab.data.vocabularies import Tokenizer
from gptlab.errors import BadInputError
from gptlab.huggingface.config import read_spec
from gptlab.huggingface.tokenizer_files import read_tokenizer
from gptlab.huggingface.weights import read_model_weights
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec, flatten
from gptlab.tracking.records import ImportedWeights

NOT_COMPARED = ("dropout", "bias")
"""Fields of a model that its weights do not decide; GPT-2 always has biases, which `_check_spec` says itself."""


@dataclass(frozen=True)
class LoadedDirectory:
    """A directory's model and tokenizer."""

    directory: Path
    model: GPT
    tokenizer: Tokenizer


def load_directory(directory: Path) -> LoadedDirectory:
    """Load a directory's model, on the CPU and in evaluation mode, and its tokenizer.

    Raises:
        BadInputError: A file is missing or damaged, or gptlab cannot represent the model or the tokenizer.
    """
    spec = read_spec(directory)
    weights, _ = read_model_weights(directory, spec)
    tokenizer = read_tokenizer(directory, spec.vocab_size)
    return LoadedDirectory(directory, gpt.with_weights(spec, weights).eval(), tokenizer)


def find_imported_weights(directory: Path, spec: ModelSpec) -> ImportedWeights:
    """Read a directory from which a run of this model is to start.

    Raises:
        BadInputError: See `load_directory`; or the directory holds another model than the spec, which is named.
    """
    _check_spec(directory, spec, read_spec(directory))
    _, sha256 = read_model_weights(directory, spec)
    return ImportedWeights(
        path=str(directory.resolve()),
        sha256=sha256,
        tokenizer_sha256=read_tokenizer(directory, spec.vocab_size).sha256,
    )


def imported_model(weights: ImportedWeights, spec: ModelSpec) -> GPT:
    """Return the model with which a run starts.

    Raises:
        BadInputError: The weights are missing, or not those that the run was created with.
    """
    if not Path(weights.path).is_dir():
        raise BadInputError(f"the directory {weights.path} is gone, whose weights the run starts from; restore it")
    tensors, sha256 = read_model_weights(Path(weights.path), spec)
    if sha256 != weights.sha256:
        raise BadInputError(
            f"the weights in {weights.path} have changed: sha256 {sha256}, but the run starts from {weights.sha256}; "
            "restore them, or start another run with `gptlab run` and --from"
        )
    return gpt.with_weights(spec, tensors)


def _check_spec(directory: Path, ours: ModelSpec, theirs: ModelSpec) -> None:
    """Check that a spec describes the model of a directory."""
    if ours.parts or not ours.bias:
        what = ", ".join([*(f"model.{field}={name}" for field, name in ours.parts.items()), *_no_bias(ours)])
        raise BadInputError(f"--from {directory} is a GPT-2, which has no {what}; choose another experiment")
    values = dict(flatten(ours.model_dump(mode="json")))
    needed = {
        key: value
        for key, value in theirs.model_dump(mode="json").items()
        if key not in NOT_COMPARED and values[key] != value
    }
    if needed:
        differences = ", ".join(f"model.{key} is {values[key]}, not {value}" for key, value in needed.items())
        settings = " ".join(f"--set model.{key}={value}" for key, value in needed.items())
        raise BadInputError(
            f"--from {directory} holds another model than the experiment: {differences}; use {settings}"
        )


def _no_bias(spec: ModelSpec) -> list[str]:
    return [] if spec.bias else ["model.bias=false"]
