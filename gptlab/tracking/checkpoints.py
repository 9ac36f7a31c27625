"""The checkpoints of a run: which there are, and what their manifests say; without torch.

    checkpoints/step-00000100/{model.safetensors, optimizer.safetensors, manifest.json}

The manifest is the commit mark: a directory without one is no checkpoint. The newest is found by looking, never by a
pointer that could be stale. One without `optimizer.safetensors` has weights only: for analysis, not to go on from.
"""

from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from gptlab.errors import BadInputError

CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(_Document):
    """What a file of a checkpoint must be."""

    bytes: int
    xxh3_128: str


class Progress(_Document):
    """Where training stands besides the tensors: all that the loop carries from step to step."""

    elapsed_s: float = 0.0
    """Training time over all attempts, without evaluation and saving."""
    metrics_bytes: int = 0
    """Length of `metrics.jsonl` up to the last row on the grid of `log_every` and `eval_every`."""
    loss_sum: float = 0.0
    """Sum of the losses since that row."""
    grad_norm_sum: float = 0.0
    clipped: int = 0
    steps_since_row: int = 0
    best_val_loss: float | None = None
    best_step: int | None = None


class Manifest(_Document):
    """What a checkpoint holds and what it was made from."""

    run: str
    step: int
    files: dict[str, FileDigest]
    progress: Progress
    text_sha256: str
    tokenizer_sha256: str
    torch: str
    threads: int


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
    for path in sorted((run_directory / CHECKPOINTS).glob("step-*")):
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            continue
        if path.name == directory_of(run_directory, manifest.step).name:
            found.append(Checkpoint(path, manifest))
    return found


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
