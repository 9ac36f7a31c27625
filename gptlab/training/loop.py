"""The training loop: one batch and one update per step.

Training is a pure function of (spec, seed, step): the batch and the dropout of a step come from `(seed, step)`, and
only weights, moments and `LoopState` are carried from step to step. So an interrupted or extended run ends with the
same bytes as an uninterrupted run of that length.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checkpoints.retention import is_snapshot
from gptlab.distributed.workers import SINGLE, Workers
from gptlab.tracking.metrics import Row
from gptlab.tracking.records import RunRecord
from gptlab.training import state as states
from gptlab.training.capture import CapturedStep, Graphs
from gptlab.training.compilation import compile_blocks, uncompiled
from gptlab.training.evaluate import evaluate
from gptlab.training.rows import RowWriter
from gptlab.training.saving import Saver
from gptlab.training.settings import Settings
from gptlab.training.state import TrainingState
from gptlab.training.step import Step, TrainingStep
from gptlab.training.training_data import TrainingData


@dataclass
class Hooks:
    """Functions that the training loop calls, in the order of the lists."""

    on_start: list[Callable[[], None]] = field(default_factory=list)
    """Called once, when the start of the attempt is recorded."""
    on_step: list[Callable[[int, float | None], None]] = field(default_factory=list)
    """Called after each step with the steps done and the loss, or None where reading it would wait for the GPU."""
    on_row: list[Callable[[Row], None]] = field(default_factory=list)
    """Called after each row of metrics."""
    on_checkpoint: list[Callable[[Checkpoint], None]] = field(default_factory=list)
    """Called after each committed checkpoint, in the saver's thread."""


class TrainingLoop:
    """Trains a run: in each step a batch and an update, then logging, validation and saving if they are due."""

    def __init__(
        self,
        record: RunRecord,
        state: TrainingState,
        data: TrainingData,
        settings: Settings,
        rows: RowWriter,
        saver: Saver,
        hooks: Hooks,
        workers: Workers = SINGLE,
    ) -> None:
        """Prepare the step. With `settings.compile`, the blocks are compiled when they are first called."""
        self.record, self.state, self.data, self.settings = record, state, data, settings
        self.rows, self.saver, self.hooks, self.workers = rows, saver, hooks, workers
        self.train_spec = record.spec.train
        self.windows = replace(data.windows, rows=workers.rows(self.train_spec.batch_size))
        if settings.compile:
            compile_blocks(state.model)
        self.step = TrainingStep(state.model, state.optimizer, record.spec, record.seed, settings)
        self.training_step: Step = self.step
        """What is called in each step: `step`, or what repeats it on a device or on several processes."""
        self._postponed_row: int | None = None

    def capture(self, graphs: Graphs) -> None:
        """Capture the step, so that it is replayed from now on.

        Raises:
            NotCapturableError: The step cannot be captured; it runs uncaptured.
        """
        self.state.model.train()
        self.training_step = CapturedStep(self.step, self._batch(self.state.step), graphs)

    def train(self, steps: int, stop_requested: Callable[[], bool], on_stop: Callable[[], None] = lambda: None) -> None:
        """Train until `steps` are done or a stop is requested, then save. When this returns, every save is committed.

        Raises:
            DivergedError: A loss or gradient norm is not finite. All checkpoints are from earlier steps.
            GptlabError: A checkpoint cannot be saved.
            OSError: A file cannot be written.
        """
        if stop_requested():  # a signal arrived during preparation
            on_stop()
            return
        self.state.model.train()
        self.rows.restart_stopwatch()
        with self.saver:
            self._write_missing_row(steps)
            while self.state.step < steps:
                self._train_step()
                stopping = stop_requested() and self.state.step < steps
                if stopping:
                    on_stop()
                self._log_and_save(last=self.state.step == steps, stopping=stopping)
                if stopping:
                    break

    def _write_missing_row(self, steps: int) -> None:
        """Write the row of the step that training starts from, unless the checkpoint's rows include it."""
        step, last = self.state.step, self.state.step == steps
        if step == self.record.start_step:
            self._log_and_save(last=last, stopping=False)
        elif self.state.loop.steps_since_row and (self._logs_at(step) or last):
            self._log(step, last=last)
        elif last and not self._validates_at(step):  # the row exists, but without a validation
            self._log(step, last=True)

    def _train_step(self) -> None:
        step, stopwatch = self.state.step, self.rows.stopwatch
        started = time.perf_counter()
        batch = self._batch(step)
        stopwatch.data_s += time.perf_counter() - started
        waited = stopwatch.saving_s
        loss, norm = self.training_step(batch, step, self._wait_for_saver)
        self.rows.add(step, loss, norm)
        self.state.step += 1
        stopwatch.step_s.append(time.perf_counter() - started - (stopwatch.saving_s - waited))
        if self._postponed_row is not None:
            row_step, self._postponed_row = self._postponed_row, None
            self._log(row_step, last=False)
        known_loss = None if self.settings.asynchronous else self.rows.last_losses["train/loss"]
        for hook in self.hooks.on_step:
            hook(self.state.step, known_loss)

    def _batch(self, step: int) -> Tensor:
        """The tokens of a step on the device, `(B, T + 1)`; with several processes, the rows of this one."""
        batch = torch.from_numpy(self.windows.batch(step))
        if self.settings.device == "cuda":
            batch = batch.pin_memory()  # a copy from pageable memory waits for the previous step
        return batch.to(self.settings.device, non_blocking=True)

    def _wait_for_saver(self) -> None:
        if self.saver.in_flight:
            with self.rows.stopwatch.saving():
                self.saver.wait_until_read()

    def _log_and_save(self, *, last: bool, stopping: bool) -> None:
        """Write the row and the checkpoint that are due at this step."""
        step, train = self.state.step, self.train_spec
        best_before = self.state.loop.best_step
        due = step > self.record.start_step and (step % train.checkpoint_every == 0 or step in train.keep_steps)
        resumable = stopping or last or due
        snapshot = train.snapshots and is_snapshot(step)
        if last or self._logs_at(step):
            if resumable or snapshot or self._validates_at(step) or not self._can_postpone_row():
                self._log(step, last=last)
            else:
                self.rows.start_copy()
                self._postponed_row = step
        improved = step > 0 and self.state.loop.best_step != best_before
        if resumable or snapshot or improved:
            self._save(resumable=resumable)

    def _can_postpone_row(self) -> bool:
        """Return whether a row can be written after the next step has started, so that the GPU never waits for it."""
        return self.settings.copies_in_background and self.state.step > self.record.start_step

    def _logs_at(self, step: int) -> bool:
        return step % self.train_spec.log_every == 0 or self._validates_at(step)

    def _validates_at(self, step: int) -> bool:
        return self.record.validates_at(step)

    def _log(self, step: int, *, last: bool) -> None:
        row = self.rows.training_row(step)
        if last or self._validates_at(step):
            with self.rows.stopwatch.paused():
                row |= self._validate()
        in_longer_run = self._validates_at(step) or (self._logs_at(step) and not last)
        self.rows.write(row, starts_interval=in_longer_run)
        for hook in self.hooks.on_row:
            hook(row)

    def _validate(self) -> Row:
        started, step = time.perf_counter(), self.state.step
        with uncompiled(self.settings):
            evaluation = evaluate(
                self.state.model,
                self.data.val,
                self.data.val_starts,
                sequence_length=self.train_spec.sequence_length,
                settings=self.settings,
                workers=self.workers,
            )
        seconds = time.perf_counter() - started
        return self.rows.validation_row(step, evaluation, seconds, on_grid=self._validates_at(step))

    def _save(self, *, resumable: bool) -> None:
        self.rows.settle()
        step = self.state.step
        loop_state = self.state.loop.model_copy(update={"elapsed_s": self.rows.elapsed_s(), "cpu_s": self.rows.cpu_s()})
        header = states.checkpoint_header(self.record, step, self.rows.last_losses)
        manifest = states.manifest_fields(self.record, self.rows.attempt, step, loop_state)
        with self.rows.stopwatch.saving():
            self.saver.save_state(self.state, header, manifest, resumable=resumable)
