"""The checkpoints of a run and their manifests, without torch.

    checkpoints/step-00000100/{model.safetensors, optimizer.safetensors, manifest.json}

The manifest is the commit mark: a directory without one is not a checkpoint. The newest checkpoint is found by
scanning, never through a pointer that could be stale. A checkpoint without `optimizer.safetensors` holds weights only:
it serves analysis and cannot be resumed.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import ModelSpec
from gptlab.untrusted import Count, open_regular, read_document

CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
MIB = 1 << 20

Shapes = Mapping[str, tuple[int, ...]]

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state per parameter: a scalar step, and two moments in the parameter's shape."""


def adamw_state_shapes(parameters: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes in `optimizer.safetensors` by `<parameter name>/{step,exp_avg,exp_avg_sq}`."""
    return {
        f"{name}/{key}": () if key == "step" else shape for name, shape in parameters.items() for key in ADAMW_STATE
    }


def float32_bytes(model: ModelSpec, file: str) -> int:
    """Return the bytes of the tensors in a checkpoint's file, without the header and AdamW's step scalars."""
    return 4 * model.parameters * (2 if file == OPTIMIZER else 1)


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
    files: dict[str, FileDigest]
    progress: LoopState
    text_sha256: str
    tokenizer_sha256: str
    torch: str
    threads: Count

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
    """Return all committed checkpoints by step, without verifying their tensors. Damaged manifests are skipped."""
    found = []
    for path in (run_directory / CHECKPOINTS).glob("step-*"):
        try:
            manifest = read_document(path / MANIFEST, Manifest)
        except (FileNotFoundError, GptlabError):
            continue
        if path.name == checkpoint_directory(run_directory, manifest.step).name:
            found.append(Checkpoint(path, manifest))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def select_checkpoint(run_directory: Path, step: int | None) -> Checkpoint:
    """Return the checkpoint of a step; None for the newest.

    Raises:
        BadInputError: The run keeps no checkpoint of that step, or none at all.
    """
    checkpoints = list_checkpoints(run_directory)
    if not checkpoints:
        raise BadInputError(f"{run_directory.name} has no checkpoint yet; train it first")
    selected = [checkpoint for checkpoint in checkpoints if step is None or checkpoint.step == step]
    if not selected:
        steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        raise BadInputError(f"{run_directory.name} keeps no checkpoint of step {step}; available: {steps}")
    return selected[-1]


def plausible_sizes(model: ModelSpec, file: str) -> range:
    """Return the lengths in bytes that a checkpoint's file can have: a header with names, then float32 tensors."""
    tensors = float32_bytes(model, file)
    return range(tensors + 1, tensors + MIB + 8192 * model.n_layer)


@contextmanager
def open_tensors(path: Path, model: ModelSpec, expected: FileDigest | None) -> Iterator[tuple[BufferedReader, int]]:
    """Open a checkpoint's file for reading; yields the file and its length.

    Args:
        path: The file.
        model: The model that the tensors belong to.
        expected: The file's digest in the manifest, or None to check only whether the length is plausible.

    Raises:
        GptlabError: The file is missing, or its length is wrong.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if expected and size != expected.bytes:
                raise GptlabError(f"{path} has {size:,} bytes, not {expected.bytes:,}")
            if size not in plausible_sizes(model, path.name):
                raise GptlabError(
                    f"{path} belongs to another model: {size:,} bytes for {model.parameters:,} parameters"
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
