"""The checkpoints of a run: which there are, and what their manifests say; without torch.

    checkpoints/step-00000100/{model.safetensors, optimizer.safetensors, manifest.json}

The manifest is the commit mark: a directory without one is no checkpoint. The newest is found by looking, never by a
pointer that could be stale. One without `optimizer.safetensors` has weights only: for analysis, not to go on from.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import ModelSpec
from gptlab.tracking.reading import Count, opened, read_document

CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
MIB = 1 << 20


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(_Document):
    """What a file of a checkpoint must be."""

    bytes: Count
    xxh3_128: str


class Progress(_Document):
    """Where training stands besides the tensors: all that the loop carries from step to step."""

    elapsed_s: FiniteFloat = Field(0.0, ge=0)
    """Training time over all attempts, without evaluation and saving."""
    metrics_bytes: Count = 0
    """Length of `metrics.jsonl` up to the last row on the grid of `log_every` and `eval_every`."""
    loss_sum: FiniteFloat = 0.0
    """Sum of the losses since that row."""
    grad_norm_sum: FiniteFloat = 0.0
    clipped: Count = 0
    steps_since_row: Count = 0
    best_val_loss: FiniteFloat | None = None
    best_step: Count | None = None


class Manifest(_Document):
    """What a checkpoint holds and what it was made from."""

    run: str
    step: Count
    files: dict[str, FileDigest]
    progress: Progress
    text_sha256: str
    tokenizer_sha256: str
    torch: str
    threads: Count

    @field_validator("files")
    @classmethod
    def _are_a_checkpoints(cls, files: dict[str, FileDigest]) -> dict[str, FileDigest]:
        if MODEL not in files or files.keys() - {MODEL, OPTIMIZER}:
            raise ValueError(f"a checkpoint is {MODEL}, with {OPTIMIZER} or without")
        return files


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint."""

    directory: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def resumable(self) -> bool:
        """Whether training can go on from it."""
        return OPTIMIZER in self.manifest.files


def directory_of(run_directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_directory / CHECKPOINTS / f"step-{step:08d}"


def list_checkpoints(run_directory: Path) -> list[Checkpoint]:
    """All committed checkpoints by step, their bytes not yet verified."""
    found = []
    for path in (run_directory / CHECKPOINTS).glob("step-*"):
        try:
            manifest = read_document(path / MANIFEST, Manifest)
        except (FileNotFoundError, GptlabError):
            continue
        if path.name == directory_of(run_directory, manifest.step).name:
            found.append(Checkpoint(path, manifest))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def sizes(model: ModelSpec, copies: int = 1) -> range:
    """How long a file of that model's tensors can be, `copies` of each in float32 after a header with their names."""
    tensors = 4 * copies * model.parameters
    return range(tensors + 1, tensors + MIB + 8192 * model.n_layer)


@contextmanager
def opened_tensors(path: Path, model: ModelSpec, expected: FileDigest | None) -> Iterator[tuple[BufferedReader, int]]:
    """A context with a checkpoint's file, open for reading, and its length: that model's, and what its manifest says.

    Raises:
        GptlabError: It is missing, or of another length.
    """
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if expected and size != expected.bytes:
                raise GptlabError(f"{path} has {size:,} bytes, not {expected.bytes:,}")
            if size not in sizes(model, copies=2 if path.name == OPTIMIZER else 1):
                raise GptlabError(f"{path} is another model's: {size:,} bytes for {model.parameters:,} parameters")
            yield file, size
    except FileNotFoundError:
        raise GptlabError(f"{path} is missing") from None


def digest_of(path: Path) -> FileDigest:
    """Size and checksum of a file."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileDigest(bytes=size, xxh3_128=digest.hexdigest())


def pick(run_directory: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest.

    Raises:
        BadInputError: The run does not keep one of that step, or none at all.
    """
    checkpoints = list_checkpoints(run_directory)
    if not checkpoints:
        raise BadInputError(f"{run_directory.name} has no checkpoint yet; train it first")
    chosen = [checkpoint for checkpoint in checkpoints if step is None or checkpoint.step == step]
    if not chosen:
        steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        raise BadInputError(f"{run_directory.name} keeps no checkpoint of step {step}; it has {steps}")
    return chosen[-1]
