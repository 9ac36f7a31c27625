"""Replay a stretch of a run in a temporary directory, by training itself."""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checkpoints.read import SavedState, read_state
from gptlab.checkpoints.retention import is_snapshot
from gptlab.errors import DivergedError, GptlabError
from gptlab.files import make_directory
from gptlab.terminal.console import Console
from gptlab.terminal.progress import StepProgress
from gptlab.terminal.text import format_bytes
from gptlab.tracking.provenance import Source
from gptlab.tracking.records import RunRecord
from gptlab.tracking.run import Run
from gptlab.training.attempt import Attempt
from gptlab.training.distribution import Alone, StopRequested
from gptlab.training.loop import Hooks
from gptlab.training.saving import NoSaver, Saver, StateSaver
from gptlab.training.settings import Settings
from gptlab.training.state import TrainingState
from gptlab.training.step import Step, TrainingStep
from gptlab.training.training_data import TrainingData
from gptlab.verification.rounding import move_by_one_rounding
from gptlab.verification.stretch import Stretch


@dataclass(frozen=True)
class Conditions:
    """What the numbers of a replay depend on besides the run and the code."""

    settings: Settings
    data: TrainingData
    threads_at: Callable[[int], int]
    """The number of threads with which to compute a step."""


@dataclass(frozen=True)
class Replayed:
    """A stretch that was trained again."""

    directory: Path
    """A run's directory with the rows, and with the checkpoints that `on_checkpoint` has left there."""
    diverged: dict[str, Any] | None
    """What training says of the divergence that ended the replay; None if there was none."""


def replay(
    run: Run,
    stretch: Stretch,
    conditions: Conditions,
    folder: Path,
    console: Console,
    on_checkpoint: Callable[[Checkpoint], None],
    *,
    rounded_otherwise: bool = False,
) -> Replayed:
    """Train a stretch of a run again.

    Args:
        run: The run, which is only read.
        stretch: The steps.
        conditions: The device, the kernels, the text and the threads.
        folder: An empty directory for the replay.
        console: Where to show progress.
        on_checkpoint: Called with the replay's checkpoint of each step that the run has one of, in another thread. It
            may remove the checkpoint.
        rounded_otherwise: Whether to move the weights by one rounding before each step; see `rounding`.

    Raises:
        BadInputError: The parent's weights are missing.
        GptlabError: Memory or disk space runs out.
    """
    _check_space(folder.parent, stretch)
    record = _keeping(run.record, stretch.checkpoints)
    copied = Run(folder / run.id, record)
    make_directory(copied.directory)
    saved, diverged = _read_start(run, stretch), None
    torch.set_num_threads(conditions.threads_at(stretch.first))
    settings = replace(conditions.settings, capture=conditions.settings.capture and not rounded_otherwise)
    train = record.spec.train
    progress = StepProgress(console, stretch.first, stretch.last, train.batch_size * train.sequence_length)
    hooks = Hooks(on_step=[progress.update], on_checkpoint=[on_checkpoint])
    distribution = _Replaying(record, stretch.checkpoints, conditions.threads_at, rounded_otherwise=rounded_otherwise)
    with progress:
        attempt = Attempt(copied, saved, conditions.data, settings, hooks, console.notice, distribution)
        try:
            attempt.train(
                stretch.target,
                {"steps": stretch.target},
                Source(None, None),
                stop_requested=lambda: attempt.state.step >= stretch.stop,
            )
        except DivergedError as error:
            diverged = error.facts
    return Replayed(copied.directory, diverged)


def remove(checkpoint: Checkpoint) -> None:
    """Remove a replay's checkpoint, which is no longer needed."""
    shutil.rmtree(checkpoint.directory, ignore_errors=True)


def _check_space(folder: Path, stretch: Stretch) -> None:
    """Check that there is room for two checkpoints of the stretch.

    Raises:
        GptlabError: There is not.
    """
    sizes = [sum(file.bytes for file in each.manifest.files.values()) for each in stretch.checkpoints.values()]
    needed, free = 2 * max(sizes, default=0), shutil.disk_usage(folder).free
    if free < needed:
        raise GptlabError(
            f"the replay needs {format_bytes(needed)}, but {folder.parent} has {format_bytes(free)} free; free some "
            "space, or set TMPDIR to a directory on another disk"
        )


def _keeping(record: RunRecord, steps: Collection[int]) -> RunRecord:
    """The record of a run that saves checkpoints of these steps. No number depends on this."""
    update = {"keep_steps": tuple(steps), "keep_checkpoints": 1, "snapshots": any(map(is_snapshot, steps))}
    train = record.spec.train.model_copy(update=update)
    return record.model_copy(update={"spec": record.spec.model_copy(update={"train": train})})


def _read_start(run: Run, stretch: Stretch) -> SavedState | None:
    spec = run.record.spec
    if stretch.start is None:
        return None
    return read_state(stretch.start, spec.model, is_adamw=not spec.train.has_own_optimizer)


class _Replaying(Alone):
    """One process that saves what the run has saved, with the threads that the run had."""

    def __init__(
        self,
        record: RunRecord,
        checkpoints: Mapping[int, Checkpoint],
        threads_at: Callable[[int], int],
        *,
        rounded_otherwise: bool,
    ) -> None:
        self._checkpoints, self._threads_at = checkpoints, threads_at
        self._move: Callable[[torch.nn.Module, int], None] | None = None
        self._precision = record.precision
        if rounded_otherwise:
            self._move = partial(move_by_one_rounding, seed=record.seed)

    def restore(self, record: RunRecord, saved: SavedState | None, settings: Settings) -> TrainingState:
        """See `Distribution`."""
        state = super().restore(record, saved, settings)
        if self._move:
            move_by_one_rounding(state.model, state.step, seed=record.seed, precision=self._precision)
        return state

    def step(self, step: TrainingStep, stop_requested: StopRequested) -> tuple[Step, StopRequested]:
        """See `Distribution`."""

        def replayed(
            batch: torch.Tensor, number: int, before_update: Callable[[], None] = lambda: None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if torch.get_num_threads() != (threads := self._threads_at(number)):
                torch.set_num_threads(threads)
            results = step(batch, number, before_update)
            if self._move:  # after the update, which waits until the saver has read the weights
                self._move(step.model, number + 1)
            return results

        return replayed, stop_requested

    def saver(self, saver: StateSaver) -> Saver:
        """See `Distribution`."""
        return _SavingLikeTheRun(saver, self._checkpoints)


class _SavingLikeTheRun(NoSaver):
    """Saves the checkpoints that the run has kept, and of those that have only weights, only these."""

    def __init__(self, saver: StateSaver, checkpoints: Mapping[int, Checkpoint]) -> None:
        self._saver, self._checkpoints = saver, checkpoints

    def save_state(
        self, state: TrainingState, header: dict[str, Any], manifest: dict[str, Any], *, resumable: bool
    ) -> None:
        """See `Saver`."""
        recorded = self._checkpoints.get(manifest["step"])
        if recorded:
            self._saver.save_state(state, header, manifest, resumable=resumable and recorded.resumable)

    @property
    def in_flight(self) -> bool:  # type: ignore[override]  # a class attribute of `NoSaver`
        """See `Saver`."""
        return self._saver.in_flight

    def wait_until_read(self) -> None:
        """See `Saver`."""
        self._saver.wait_until_read()

    def __exit__(self, *error: Any) -> None:
        self._saver.__exit__(*error)
