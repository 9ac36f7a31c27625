"""How a run is distributed: over one process, or over several that each have all of the state."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch.nn.parallel import DistributedDataParallel

from gptlab.checkpoints.manifest import LoopState
from gptlab.checkpoints.read import SavedState
from gptlab.distributed.place import Place
from gptlab.distributed.workers import SINGLE, Group, Workers
from gptlab.errors import BadInputError
from gptlab.model.gpt import GPT
from gptlab.tracking.records import RunRecord
from gptlab.tracking.run import Run
from gptlab.training.initial import initial_model
from gptlab.training.joint_step import JointStep
from gptlab.training.optimizer import gradient_norm
from gptlab.training.optimizer_state import ON_HOST
from gptlab.training.saving import NoSaver, Saver, StateSaver
from gptlab.training.settings import Settings
from gptlab.training.state import StoredState, TrainingState, build_state, restore, stored_state
from gptlab.training.step import Step, TrainingStep

StopRequested = Callable[[], bool]


class Distribution(Protocol):
    """What depends on how many processes there are, and on who has which part of the state."""

    @property
    def workers(self) -> Workers:
        """The processes."""

    def restore(self, record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
        """Return the state to train, on the device. See `gptlab.training.state.restore`."""

    def step(self, step: TrainingStep, stop_requested: StopRequested) -> tuple[Step, StopRequested]:
        """Return the step of all processes, and whether one of them was asked to stop."""

    def saver(self, saver: StateSaver) -> Saver:
        """Return the saver of process 0, given that of a process which has all of the state."""

    def whole_model(self, state: TrainingState, run: Run, settings: Settings) -> GPT:
        """Return the model with all of its weights in process 0, after training has ended and the state was saved."""


class Joint(Distribution, Protocol):
    """A distribution over several processes."""

    def follower_saver(self) -> Saver:
        """Return the saver of the processes besides the first one."""


class Alone:
    """One process."""

    workers = SINGLE

    def restore(self, record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
        """See `Distribution`."""
        return restore(record, saved, settings)

    def step(self, step: TrainingStep, stop_requested: StopRequested) -> tuple[Step, StopRequested]:
        """See `Distribution`."""
        return step, stop_requested

    def saver(self, saver: StateSaver) -> Saver:
        """See `Distribution`."""
        return saver

    def whole_model(self, state: TrainingState, run: Run, settings: Settings) -> GPT:
        """See `Distribution`."""
        return state.model


class Replicated:
    """Several processes with the same state: distributed data parallelism (Li et al. 2020).

    Each process computes the gradients of its rows, which are averaged over the processes during the backward pass.
    Process 0 reads the state and saves it.
    """

    def __init__(self, workers: Group) -> None:
        self.workers = workers

    def restore(self, record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
        """See `Distribution`. Process 0 reads the state, and the others receive it."""
        stored = first_state(record, saved) if self.workers.rank == 0 else None
        step, loop, values, has_optimizer = tell_facts(self.workers, stored)
        spread = self.workers.spread
        weights = {name: tensor.to(settings.device) for name, tensor in spread(stored.weights if stored else None)}
        optimizer = {
            name: tensor if values.get(name) == ON_HOST else tensor.to(settings.device)
            for name, tensor in spread(stored.optimizer if stored else None)
        }
        received = StoredState(weights, optimizer if has_optimizer else None, values, step, loop)
        return build_state(record, received, settings)

    def step(self, step: TrainingStep, stop_requested: StopRequested) -> tuple[Step, StopRequested]:
        """See `Distribution`."""
        model, size = step.model, self.workers.size
        averaging = DistributedDataParallel(
            model,
            device_ids=[torch.cuda.current_device()] if step.settings.device == "cuda" else None,
            forward_sync_buffers=False,  # no process changes them; see `JointStep`
            gradient_as_bucket_view=True,  # else each gradient exists twice
            init_sync=False,  # `restore` gave all processes the same state
        )
        joint = JointStep(
            replace(step, model=averaging),
            self.workers,
            lambda: gradient_norm(cast(GPT, model)).square() / size,  # each process has all of the averaged gradients
            stop_requested,
        )
        return joint, joint.stops

    def saver(self, saver: StateSaver) -> Saver:
        """See `Distribution`."""
        return saver

    def whole_model(self, state: TrainingState, run: Run, settings: Settings) -> GPT:
        """See `Distribution`."""
        return state.model

    def follower_saver(self) -> Saver:
        """See `Joint`."""
        return NoSaver()


def first_state(record: RunRecord, saved: SavedState | None) -> StoredState:
    """Return the state of a checkpoint, or the state that the run begins with, on the CPU.

    Raises:
        BadInputError: The parent's weights or optimizer state are missing or damaged.
    """
    return stored_state(record, saved) or StoredState(initial_model(record).state_dict(), None)


def tell_facts(workers: Group, stored: StoredState | None) -> tuple[int, LoopState, dict[str, object], bool]:
    """Return in each process step, loop state and values of the state that process 0 has, and if it has an optimizer's.

    The other processes pass None.
    """
    facts = stored and {
        "step": stored.step,
        "loop": stored.loop.model_dump(mode="json"),
        "values": dict(stored.values),
        "has_optimizer": stored.optimizer is not None,
    }
    told = workers.tell(facts)
    return told["step"], LoopState.model_validate(told["loop"]), told["values"], told["has_optimizer"]


def choose_for_processes(settings: Settings, at: Place, capture: bool | None) -> Settings:
    """Return the settings for processes that train together: without CUDA graphs.

    Args:
        settings: The settings for one process.
        at: This process's place.
        capture: Whether the user asked for CUDA graphs; None for the default.

    Raises:
        BadInputError: The device cannot be used by several processes, or there are fewer GPUs than processes.
    """
    if at.size == 1:
        return settings
    if capture:
        raise BadInputError("--capture works with one process only; leave it out")
    if settings.device == "mps":
        raise BadInputError("several processes cannot train on mps; use --device cpu, or one process")
    if settings.device == "cuda" and (gpus := torch.cuda.device_count()) < at.local_size:
        raise BadInputError(
            f"{at.local_size} processes need as many GPUs, but this machine has {gpus}; use --nproc {gpus}, or "
            "--device cpu"
        )
    return replace(settings, capture=False)
