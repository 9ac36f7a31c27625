"""The state that checkpoints save and restore: weights, optimizer state, step and running sums."""

from dataclasses import dataclass, field
from typing import Any

import torch

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, LoopState
from gptlab.checkpoints.read import SavedState, model_from
from gptlab.checkpoints.tensors import Tensors
from gptlab.identity import identity_fields
from gptlab.model.gpt import GPT
from gptlab.tracking.records import RunRecord
from gptlab.training import optimizer
from gptlab.training.initial import initial_model, read_branch
from gptlab.training.settings import Settings


@dataclass
class TrainingState:
    """The mutable state of a run in training."""

    model: GPT
    optimizer: torch.optim.AdamW
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
        weights, moments = saved.weights, saved.optimizer
        step, loop = saved.checkpoint.step, saved.checkpoint.manifest.progress
    elif branch:
        weights, moments = read_branch(branch, spec.model)
        step, loop = branch.step, LoopState(elapsed_s=branch.elapsed_s, cpu_s=branch.cpu_s)
    else:
        model = initial_model(record).to(settings.device)
        return TrainingState(model, optimizer.build(model, spec.train, fused=settings.fused))
    model = model_from(weights, spec.model).to(settings.device)
    adamw = optimizer.build(model, spec.train, fused=settings.fused)
    optimizer.load_state_tensors(model, adamw, moments)
    return TrainingState(model, adamw, step, loop)


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
    files = {MODEL: _to_host(state.model.state_dict(), copy)}
    if resumable:
        files[OPTIMIZER] = _to_host(optimizer.state_tensors(state.model, state.optimizer), copy)
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


def _to_host(tensors: dict[str, torch.Tensor], copy: bool) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=copy) for name, tensor in tensors.items()}
