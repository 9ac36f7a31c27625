"""The state that checkpoints save and restore: weights, optimizer state, step and running sums."""

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


def restore(record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
    """Return the state of a checkpoint, or the state that the run begins with, on the settings' device.

    Raises:
        BadInputError: The parent's weights or optimizer state are missing or damaged.
    """
    spec, branch = record.spec, record.branch
    if saved:
        manifest = saved.checkpoint.manifest
        weights, tensors, values = saved.weights, saved.optimizer, manifest.optimizer_values
        step, loop = manifest.step, manifest.progress
    elif branch:
        weights, tensors = read_branch(branch, spec)
        values = branch.optimizer_values
        step, loop = branch.step, LoopState(elapsed_s=branch.elapsed_s, cpu_s=branch.cpu_s)
    else:
        model = initial_model(record).to(settings.device)
        return TrainingState(model, _optimizer(model, spec.train, settings))
    model = with_weights(spec.model, weights).to(settings.device)
    built = _optimizer(model, spec.train, settings)
    optimizer.load_state(model, built, tensors, values)
    return TrainingState(model, built, step, loop)


def _optimizer(model: GPT, spec: TrainSpec, settings: Settings) -> torch.optim.Optimizer:
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
