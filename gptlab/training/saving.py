"""Savers of checkpoints for the training loop."""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from gptlab.checkpoints.gathered import file_order, write_gathered
from gptlab.checkpoints.saver import BackgroundSaver
from gptlab.checkpoints.tensors import Tensors
from gptlab.training import optimizer as optimizers
from gptlab.training import state as states
from gptlab.training.state import TrainingState


class Saver(Protocol):
    """A context manager that saves checkpoints. Its exit waits until each save is committed."""

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """Save a checkpoint, or start to.

        Args:
            state: The state to save.
            header: See `commit_checkpoint`.
            manifest: See `commit_checkpoint`; what the optimizer keeps besides tensors is added.
            resumable: Whether to include the optimizer state.
        """

    @property
    def in_flight(self) -> bool:
        """Whether a save was started whose end has not been waited for."""

    def wait_until_read(self) -> None:
        """Wait until the save in flight no longer needs its tensors, so that they may change."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StateSaver(BackgroundSaver):
    """Saves the state of a process that has all of it, while training continues."""

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """See `Saver`. A GPU's tensors are copied to the host first."""
        copy = not states.on_host(state)
        self.finish()  # before the copy, so that only one copy of a GPU's tensors exists at a time
        files = states.checkpoint_files(state, resumable=resumable, copy=copy)
        if resumable:
            manifest["optimizer_values"] = optimizers.state_values(state.model, state.optimizer)
        self.save(files, header, manifest, copied=copy)


class FilesOf(Protocol):
    """Returns the tensors of each file of a checkpoint; see `gptlab.training.sharded.sharded_files`."""

    def __call__(self, state: TrainingState, *, resumable: bool) -> dict[str, Tensors]:
        """Return them by name, in each process its parts."""


class GatheringSaver:
    """Saves the state of several processes that each have a part of it, in process 0.

    Training waits, because gathering in another thread would mix with the exchanges of training.
    """

    in_flight = False

    def __init__(self, saver: StateSaver, files_of: FilesOf, gather: Callable[[Tensor], Tensor]) -> None:
        self._saver, self._files_of, self._gather = saver, files_of, gather

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """See `Saver`."""
        write = partial(write_gathered, gather=self._gather)
        self._saver.save_now(self._files_of(state, resumable=resumable), header, manifest, write)

    def wait_until_read(self) -> None:
        """See `Saver`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saver.__exit__(kind, error, trace)


class NoSaver:
    """Saves nothing, in a process whose state another process saves as its own."""

    in_flight = False

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """See `Saver`."""

    def wait_until_read(self) -> None:
        """See `Saver`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class GatheringFollower(NoSaver):
    """Takes part in the saves of `GatheringSaver` in the other processes."""

    def __init__(self, files_of: FilesOf, gather: Callable[[Tensor], Tensor]) -> None:
        self._files_of, self._gather = files_of, gather

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """See `Saver`. The tensors are gathered in the order of the files and dropped."""
        for tensors in self._files_of(state, resumable=resumable).values():
            for name in file_order(tensors):
                self._gather(tensors[name])
