"""The training loop: one batch and one update per step.

Training is a pure function of (spec, seed, step): the batch and the dropout of a step come from `(seed, step)`, and
only weights, moments and `LoopState` are carried from step to step. So an interrupted or extended run ends with the
same bytes as an uninterrupted run of that length.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checkpoints.retention import is_snapshot
from gptlab.checkpoints.saver import BackgroundSaver
from gptlab.tracking.metrics import Row
from gptlab.tracking.records import RunRecord
from gptlab.training import optimizer as optimizers
from gptlab.training import state as states
from gptlab.training.evaluate import evaluate
from gptlab.training.rows import RowWriter
from gptlab.training.settings import Settings
from gptlab.training.state import TrainingState
from gptlab.training.step import TrainingStep
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
        saver: BackgroundSaver,
        hooks: Hooks,
    ) -> None:
        """Prepare the step. With `settings.compile`, the model is compiled when it is first called."""
        self.record, self.state, self.data, self.settings = record, state, data, settings
        self.rows, self.saver, self.hooks = rows, saver, hooks
        self.train_spec = record.spec.train
        self.model = cast(nn.Module, torch.compile(state.model)) if settings.compile else state.model
        self.training_step = TrainingStep(self.model, state.optimizer, record.spec, record.seed, settings)

    def train(self, steps: int, stop_requested: Callable[[], bool]) -> None:
        """Train until `steps` are done or a stop is requested, then save.

        The last save may be in flight when this returns. The caller enters `saver`, whose exit waits for it.

        Raises:
            DivergedError: A loss or gradient norm is not finite. All checkpoints are from earlier steps.
            GptlabError: A checkpoint cannot be saved.
            OSError: A file cannot be written.
        """
        if stop_requested():  # a signal arrived during preparation
            return
        self.model.train()
        self.rows.restart_stopwatch()
        self._write_missing_row(steps)
        while self.state.step < steps:
            self._train_step()
            stopping = stop_requested() and self.state.step < steps
            self._log_and_save(last=self.state.step == steps, stopping=stopping)
            if stopping:
                break

    def _write_missing_row(self, steps: int) -> None:
        """Write the row of the step that training starts from, unless the checkpoint's rows include it."""
        step, last = self.state.step, self.state.step == steps
        if step == self.record.start_step:
            self._log_and_save(last=last, stopping=False)
        elif self.state.loop.steps_since_row and (self._logs_at(step) or last):
            self._log(last=last)
        elif last and not self._validates_at(step):  # the row exists, but without a validation
            self._log(last=True)

    def _train_step(self) -> None:
        step, stopwatch = self.state.step, self.rows.stopwatch
        started = time.perf_counter()
        batch = self._batch(step)
        stopwatch.data_s += time.perf_counter() - started
        waited = stopwatch.saving_s
        loss, norm = self.training_step(batch, step, before_update=self._wait_for_saver)
        self.rows.add(step, loss, norm)
        self.state.step += 1
        stopwatch.step_s.append(time.perf_counter() - started - (stopwatch.saving_s - waited))
        known_loss = None if self.settings.asynchronous else self.rows.last_losses["train/loss"]
        for hook in self.hooks.on_step:
            hook(self.state.step, known_loss)

    def _batch(self, step: int) -> Tensor:
        """The tokens of a step on the device, `(B, T + 1)`."""
        batch = torch.from_numpy(self.data.windows.batch(step))
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
        if last or self._logs_at(step):
            self._log(last=last)
        improved = step > 0 and self.state.loop.best_step != best_before
        due = step % train.checkpoint_every == 0 or step in train.keep_steps
        if stopping or last or (step > self.record.start_step and due):
            self._save(resumable=True)
        elif improved or (train.snapshots and is_snapshot(step)):
            self._save(resumable=False)

    def _logs_at(self, step: int) -> bool:
        return step % self.train_spec.log_every == 0 or self._validates_at(step)

    def _validates_at(self, step: int) -> bool:
        return self.record.validates_at(step)

    def _log(self, *, last: bool) -> None:
        step = self.state.step
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
        evaluation = evaluate(
            self.model,
            self.data.val,
            self.data.val_starts,
            sequence_length=self.train_spec.sequence_length,
            settings=self.settings,
        )
        seconds = time.perf_counter() - started
        return self.rows.validation_row(step, evaluation, seconds, on_grid=self._validates_at(step))

    def _save(self, *, resumable: bool) -> None:
        self.rows.settle()
        step, copy = self.state.step, not states.on_host(self.state)
        loop_state = self.state.loop.model_copy(update={"elapsed_s": self.rows.elapsed_s(), "cpu_s": self.rows.cpu_s()})
        header = states.checkpoint_header(self.record, step, self.rows.last_losses)
        manifest = states.manifest_fields(self.record, self.rows.attempt, step, loop_state)
        with self.rows.stopwatch.saving():
            self.saver.finish()  # before the copy, so that only one copy of a GPU's tensors exists at a time
            files = states.checkpoint_files(self.state, resumable=resumable, copy=copy)
            if resumable:
                manifest["optimizer_values"] = optimizers.state_values(self.state.model, self.state.optimizer)
            self.saver.save(files, header, manifest, copied=copy)
