"""The checkpoints of a run and their manifests, without torch.

    checkpoints/step-00000100/{model.safetensors, optimizer.safetensors, manifest.json}

The manifest is the commit mark: a directory without one is not a checkpoint. It is `{"digest", "content"}`, so that a
damaged one is noticed; manifests of earlier versions are the content alone and are read as unverified. The newest
checkpoint is found by scanning, never through a pointer that could be stale. A checkpoint without
`optimizer.safetensors` holds weights only: it serves analysis and cannot be resumed.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, field_validator, model_validator

from gptlab.digests import document_digest
from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import ModelSpec
from gptlab.terminal.text import plural
from gptlab.untrusted import Count, open_regular, read_document

CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
MIB = 1 << 20
KEEP_STEPS = "; `gptlab run` with --set train.keep_steps=[STEP] keeps one when the run is trained"

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state per parameter: a scalar step, and two moments in the parameter's shape."""


def adamw_state_shapes(parameters: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes in `optimizer.safetensors` by `<parameter name>/{step,exp_avg,exp_avg_sq}`."""
    return {
        f"{name}/{key}": () if key == "step" else shape for name, shape in parameters.items() for key in ADAMW_STATE
    }


def float32_bytes(parameters: int, file: str) -> int:
    """Return the bytes of the tensors in a checkpoint's file, without the header and AdamW's step scalars."""
    return 4 * parameters * (2 if file == OPTIMIZER else 1)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(_Document):
    """Size and checksum of a checkpoint's file."""

    bytes: Count
    xxh3_128: str


class LoopState(_Document):
    """The state that the training loop carries from step to step besides the tensors."""

    elapsed_s: FiniteFloat = Field(0.0, ge=0)
    """Seconds of training over all attempts, without evaluation and saving."""
    cpu_s: FiniteFloat | None = Field(None, ge=0)
    """CPU seconds of the process in that time, over all attempts; None in a checkpoint of an earlier version."""
    metrics_bytes: Count = 0
    """Length of `metrics.jsonl` up to the last row on the grid (see `gptlab.training.rows`)."""
    metrics_xxh3: str | None = None
    """The xxh3_128 of these bytes, in hexadecimal; None in manifests of earlier versions of gptlab."""
    metrics_damaged_to: Count | None = None
    """Rows up to this step were damaged or lost when an attempt resumed; None if all rows are as they were written."""
    loss_sum: FiniteFloat = 0.0
    """Sum of the losses since that row."""
    grad_norm_sum: FiniteFloat = 0.0
    clipped: Count = 0
    """Number of steps since that row whose gradient was clipped."""
    steps_since_row: Count = 0
    best_val_loss: FiniteFloat | None = None
    best_step: Count | None = None


class Manifest(_Document):
    """`manifest.json`: a checkpoint's files, its state besides the tensors, and its provenance."""

    run: str
    step: Count
    attempt: Count | None = None
    """Number of the attempt that saved it; None in manifests of earlier versions of gptlab."""
    files: dict[str, FileDigest]
    progress: LoopState
    optimizer_values: dict[str, JsonValue] = {}
    """State of the optimizer besides its tensors; see `gptlab.training.optimizer_state`. AdamW has none."""
    text_sha256: str
    tokenizer_sha256: str
    torch: str
    threads: Count

    def to_json(self) -> str:
        """Return the content of the file."""
        content = self.model_dump(mode="json", exclude=None if self.optimizer_values else {"optimizer_values"})
        return json.dumps({"digest": document_digest(content), "content": content}, indent=2) + "\n"

    @model_validator(mode="before")
    @classmethod
    def _check_digest(cls, document: Any) -> Any:
        if not isinstance(document, dict) or document.keys() != {"digest", "content"}:
            return document
        if document_digest(document["content"]) != document["digest"]:
            raise ValueError("its digest does not match its content")
        return document["content"]

    @field_validator("files")
    @classmethod
    def _check_file_names(cls, files: dict[str, FileDigest]) -> dict[str, FileDigest]:
        if MODEL not in files or files.keys() - {MODEL, OPTIMIZER}:
            raise ValueError(f"a checkpoint holds {MODEL} and optionally {OPTIMIZER}")
        return files


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    directory: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def resumable(self) -> bool:
        """Whether it holds the optimizer state, so that training can resume from it."""
        return OPTIMIZER in self.manifest.files


def checkpoint_directory(run_directory: Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return run_directory / CHECKPOINTS / f"step-{step:08d}"


def list_checkpoints(run_directory: Path) -> list[Checkpoint]:
    """Return all committed checkpoints by step, without verifying their tensors.

    A directory with a damaged manifest is not one of them; `damaged_manifests` returns those.
    """
    read = _read_checkpoints(run_directory).values()
    return sorted((found for found in read if isinstance(found, Checkpoint)), key=lambda checkpoint: checkpoint.step)


def damaged_manifests(run_directory: Path) -> dict[str, GptlabError]:
    """Return, by the name of its directory, what is wrong with each manifest that is missing or damaged."""
    return {name: read for name, read in _read_checkpoints(run_directory).items() if isinstance(read, GptlabError)}


def select_checkpoint(run_directory: Path, step: int | None, *, resumable: bool = False) -> Checkpoint:
    """Return the checkpoint of a step; None for the newest. If a newer manifest is damaged, a warning is logged.

    Args:
        run_directory: The run's directory.
        step: Optimizer steps done.
        resumable: Whether to select only among resumable checkpoints.

    Raises:
        BadInputError: The run keeps no such checkpoint of that step, or none at all.
    """
    checkpoints, damaged = list_checkpoints(run_directory), damaged_manifests(run_directory)
    weights_only = [str(checkpoint.step) for checkpoint in checkpoints if not checkpoint.resumable]
    checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.resumable or not resumable]
    kind, remedy = ("resumable checkpoint", KEEP_STEPS) if resumable else ("checkpoint", "")
    if step is not None and (error := damaged.get(checkpoint_directory(run_directory, step).name)):
        raise BadInputError(str(error))
    if not checkpoints and weights_only:
        raise BadInputError(
            f"{run_directory.name} has no {kind}, only the weights of steps {', '.join(weights_only)}, from which "
            "`gptlab run` with --from starts"
        )
    if not checkpoints:
        newest = [str(error) for _, error in sorted(damaged.items())][-1:]
        raise BadInputError(f"{run_directory.name} has no {kind}{': '.join(['', *newest]) or ' yet; train it first'}")
    selected = [checkpoint for checkpoint in checkpoints if step is None or checkpoint.step == step]
    if not selected:
        steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        raise BadInputError(f"{run_directory.name} keeps no {kind} of step {step}; available: {steps}{remedy}")
    if step is None:
        for name, error in sorted(damaged.items()):
            if name > selected[-1].directory.name:
                logger.warning("%s; using the checkpoint of step %d", error, selected[-1].step)
    return selected[-1]


def _read_checkpoints(run_directory: Path) -> dict[str, Checkpoint | GptlabError]:
    """Read every manifest of a run. Returns, by the name of the directory, the checkpoint or what is wrong with it."""
    found: dict[str, Checkpoint | GptlabError] = {}
    for directory in (run_directory / CHECKPOINTS).glob("step-*"):
        try:
            found[directory.name] = _read_checkpoint(directory)
        except GptlabError as error:
            if directory.exists():  # retention may have removed it meanwhile
                found[directory.name] = error
    return found


def _read_checkpoint(directory: Path) -> Checkpoint:
    path = directory / MANIFEST
    try:
        manifest = read_document(path, Manifest)
    except FileNotFoundError:
        raise GptlabError(f"{path} is missing") from None
    if directory != checkpoint_directory(directory.parents[1], manifest.step):
        raise GptlabError(f"{path} belongs to step {manifest.step}")
    return Checkpoint(directory, manifest)


def plausible_sizes(model: ModelSpec, file: str) -> range:
    """Return the lengths in bytes that a checkpoint's file can have: a header with names, then float32 tensors.

    Those of a model with parts are known only from its code. Whatever such a file says, its tensors fill the file, so
    that a reader needs no more memory than the file's length.
    """
    if model.has_parts:
        return range(1, sys.maxsize)
    tensors = float32_bytes(model.parameters, file)
    return range(tensors + 1, tensors + MIB + 8192 * model.n_layer)


@contextmanager
def open_tensors(
    path: Path, model: ModelSpec, expected: FileDigest | None, *, any_size: bool = False
) -> Iterator[tuple[BufferedReader, int]]:
    """Open a checkpoint's file for reading; yields the file and its length.

    Args:
        path: The file.
        model: The model that the tensors belong to.
        expected: The file's digest in the manifest, or None to check only whether the length is plausible.
        any_size: Whether a length that agrees with the manifest is plausible, as for an optimizer other than AdamW.

    Raises:
        GptlabError: The file is missing, or its length is wrong.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if expected and size != expected.bytes:
                raise GptlabError(f"{path} has {plural(size, 'byte')}, not {expected.bytes:,}")
            if not any_size and size not in plausible_sizes(model, path.name):
                raise GptlabError(
                    f"{path} belongs to another model: {plural(size, 'byte')} for {model.parameters:,} parameters"
                )
            yield file, size
    except FileNotFoundError:
        raise GptlabError(f"{path} is missing") from None


def compute_digest(path: Path) -> FileDigest:
    """Compute size and checksum of a file."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
            size += len(block)
    return FileDigest(bytes=size, xxh3_128=digest.hexdigest())
