"""A run on several processes that each have a part of weights, gradients and moments: FSDP2.

`fully_shard` (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) gathers the weights of a block
before its forward and backward pass and frees them afterwards. Embeddings, the last norm and the output layer belong to
the group of the whole model and stay gathered until the end of the backward pass, because the loss uses the output
layer's weight outside of its forward method.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, list_checkpoints
from gptlab.checkpoints.read import SavedState, load_model
from gptlab.checkpoints.tensors import Tensors
from gptlab.distributed.workers import Group
from gptlab.errors import BadInputError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec
from gptlab.tracking.records import RunRecord
from gptlab.tracking.run import Run
from gptlab.training import optimizer as optimizers
from gptlab.training.distribution import StopRequested, first_state, tell_facts
from gptlab.training.joint_step import JointStep
from gptlab.training.saving import GatheringFollower, GatheringSaver, Saver, StateSaver
from gptlab.training.settings import Settings
from gptlab.training.state import TrainingState
from gptlab.training.step import Step, TrainingStep


class Sharded:
    """See `Joint`."""

    def __init__(self, workers: Group) -> None:
        self.workers = workers

    def restore(self, record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
        """See `Distribution`. Process 0 reads the state; of each tensor, the others keep their part."""
        stored = first_state(record, saved) if self.workers.rank == 0 else None
        step, loop, _, has_optimizer = tell_facts(self.workers, stored)
        model = _sharded_model(record.spec.model, settings.device, self.workers.size)
        tensors = model.state_dict()
        for name, whole in self.workers.spread(stored.weights if stored else None):
            _copy_part(whole, tensors[name])
        optimizer = optimizers.build(model, record.spec.train, fused=settings.fused)
        moments = {
            name: _part(whole, tensors[name.rpartition("/")[0]])
            for name, whole in self.workers.spread(stored.optimizer if stored else None)
        }
        if has_optimizer:
            optimizers.load_state(model, optimizer, moments, {})
        return TrainingState(model, optimizer, step, loop)

    def step(self, step: TrainingStep, stop_requested: StopRequested) -> tuple[Step, StopRequested]:
        """See `Distribution`."""
        joint = JointStep(step, self.workers, lambda: _squared_norm(step.model), stop_requested)
        return joint, joint.stops

    def saver(self, saver: StateSaver) -> Saver:
        """See `Distribution`."""
        return GatheringSaver(saver, sharded_files, gather)

    def follower_saver(self) -> Saver:
        """See `Joint`."""
        return GatheringFollower(sharded_files, gather)

    def whole_model(self, state: TrainingState, run: Run, settings: Settings) -> GPT:
        """See `Distribution`. The model is read from the newest checkpoint."""
        return load_model(list_checkpoints(run.directory)[-1], run.record.spec.model).to(settings.device)


def sharded_files(state: TrainingState, *, resumable: bool) -> dict[str, Tensors]:
    """Return the tensors of each file of a checkpoint, of which this process has parts."""
    files = {MODEL: cast(Tensors, state.model.state_dict())}
    if resumable:
        files[OPTIMIZER] = {
            f"{name}/{key}": value
            for name, parameter in state.model.named_parameters()
            for key, value in state.optimizer.state.get(parameter, {}).items()
        }
    return files


def gather(tensor: Tensor) -> Tensor:
    """Return a whole tensor on the CPU. All processes must call this at once."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def _sharded_model(spec: ModelSpec, device: str, processes: int) -> GPT:
    """Return a model with uninitialized weights, of which each process has a part.

    Raises:
        BadInputError: A part of the model cannot be divided.
    """
    model = gpt.empty(spec, "cpu" if spec.has_parts else "meta")  # parts compute their buffers in the constructor
    mesh = init_device_mesh(device, (processes,))
    try:
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh)
    except (ValueError, NotImplementedError) as error:
        raise BadInputError(
            f"the model's parts cannot be divided among processes: {error}; leave --shard out"
        ) from error
    if not spec.has_parts:
        model.to_empty(device=device)
    model.register_forward_hook(_free_after_evaluation)
    return model


def _free_after_evaluation(model: torch.nn.Module, inputs: Any, output: Tensor) -> None:
    """Without a backward pass, nothing else would free the gathered weights of the whole model's group."""
    if not torch.is_grad_enabled():
        cast(FSDPModule, model).reshard()


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that is divided as a parameter is; a scalar, such as a step, is not."""
    if whole.ndim == 0 or not isinstance(like, DTensor):
        return whole
    part: Tensor = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return part


@torch.no_grad()
def _copy_part(whole: Tensor, target: Tensor) -> None:
    """Copy this process's part of a tensor."""
    part = _part(whole, target)
    if isinstance(target, DTensor) and isinstance(part, DTensor):
        part, target = part.to_local(), target.to_local()
    target.copy_(part)


def _squared_norm(model: torch.nn.Module) -> Tensor:
    """Return the squared norm of this process's parts of the gradients; by rows, see `optimizer.gradient_norm`."""
    parts = [cast(DTensor, parameter.grad).to_local() for parameter in model.parameters()]
    rows = [torch.linalg.vector_norm(part, dim=-1).flatten() for part in parts]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(rows))
    return norm.square()
