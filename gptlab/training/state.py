"""The state that checkpoints save and restore: weights, optimizer state, step and running sums."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, LoopState
from gptlab.checkpoints.read import SavedState
from gptlab.checkpoints.tensors import Tensors
from gptlab.identity import identity_fields
from gptlab.model.gpt import GPT, with_weights
from gptlab.spec import TrainSpec
from gptlab.tracking.records import RunRecord
from gptlab.training import optimizer
from gptlab.training.initial import initial_model, read_branch
from gptlab.training.settings import Settings


@dataclass
class TrainingState:
    """The mutable state of a run in training."""

    model: GPT
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done."""
    loop: LoopState = field(default_factory=lambda: LoopState(cpu_s=0.0))


@dataclass(frozen=True)
class StoredState:
    """A state as checkpoints hold it, on the CPU."""

    weights: Tensors
    optimizer: Tensors | None
    """None before the first step."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """State of the optimizer besides the tensors."""
    step: int = 0
    loop: LoopState = field(default_factory=lambda: LoopState(cpu_s=0.0))


def restore(record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
    """Return the state of a checkpoint, or the state that the run begins with, on the settings' device.

    Raises:
        BadInputError: The parent's weights or optimizer state are missing or damaged.
    """
    stored = stored_state(record, saved)
    if stored is None:
        model = initial_model(record).to(settings.device)
        return TrainingState(model, build_optimizer(model, record.spec.train, settings))
    return build_state(record, stored, settings)


def stored_state(record: RunRecord, saved: SavedState | None) -> StoredState | None:
    """Return the state of a checkpoint, of `saved` or of the run's parent; None if the run begins at step 0.

    Raises:
        BadInputError: See `restore`.
    """
    if saved:
        manifest = saved.checkpoint.manifest
        values, step, loop = manifest.optimizer_values, manifest.step, manifest.progress
        return StoredState(saved.weights, saved.optimizer, values, step, loop)
    if branch := record.branch:
        weights, tensors = read_branch(branch, record.spec)
        loop = LoopState(elapsed_s=branch.elapsed_s, cpu_s=branch.cpu_s)
        return StoredState(weights, tensors, branch.optimizer_values, branch.step, loop)
    return None


def build_state(record: RunRecord, stored: StoredState, settings: Settings) -> TrainingState:
    """Return a stored state on the settings' device. Tensors that are there already are used without a copy."""
    model = with_weights(record.spec.model, stored.weights).to(settings.device)
    built = build_optimizer(model, record.spec.train, settings)
    if stored.optimizer is not None:
        optimizer.load_state(model, built, stored.optimizer, stored.values)
    return TrainingState(model, built, stored.step, stored.loop)


def build_optimizer(model: GPT, spec: TrainSpec, settings: Settings) -> torch.optim.Optimizer:
    """Return a model's optimizer without state."""
    return optimizer.build(model, spec, fused=settings.fused, capturable=settings.capturable)


def on_host(state: TrainingState) -> bool:
    """Return whether the tensors are in host memory, so that they can be written without a copy."""
    return next(state.model.parameters()).device.type == "cpu"


def checkpoint_files(state: TrainingState, *, resumable: bool, copy: bool) -> dict[str, Tensors]:
    """Return the tensors of each file of a checkpoint, on the CPU.

    Args:
        state: The state to save.
        resumable: Whether to include the optimizer state.
        copy: Whether to also copy tensors that are on the CPU already.
    """
    buffers = {name for name, _ in state.model.named_buffers()}  # the forward pass may change them during a save
    weights = state.model.state_dict().items()
    files = {MODEL: {name: _to_host(tensor, copy or name in buffers) for name, tensor in weights}}
    if resumable:
        tensors = optimizer.state_tensors(state.model, state.optimizer).items()
        files[OPTIMIZER] = {name: _to_host(tensor, copy) for name, tensor in tensors}
    return files


def checkpoint_header(record: RunRecord, step: int, losses: dict[str, float | None]) -> dict[str, Any]:
    """Return the facts for the header of a checkpoint's files, which are the same in an extended run."""
    return {
        "run": record.run,
        "step": step,
        "tokens": record.tokens_at(step),
        "losses": losses,
        "config": {**record.identity, **identity_fields(record.spec)},
    }


def manifest_fields(record: RunRecord, attempt: int, step: int, loop: LoopState) -> dict[str, Any]:
    """Return the fields of a checkpoint's manifest except `files`."""
    return {
        "run": record.run,
        "step": step,
        "attempt": attempt,
        "progress": loop,
        "text_sha256": record.text.sha256,
        "tokenizer_sha256": record.tokenizer_sha256,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _to_host(tensor: torch.Tensor, copy: bool) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=copy).contiguous()
