"""The training loop: one batch per step, AdamW at a constant learning rate.

Training is a pure function of (spec, seed, step): the batch and the dropout of a step come from `(seed, step)`, and all
that is carried from step to step is the weights, AdamW's moments and `Progress`. So a run that was interrupted or
extended ends with the bytes of the run that was long from the start.

Rows stand on a grid, at multiples of `log_every` and `eval_every`, plus one with a validation at the last step. Where a
longer run would have no such row, it leaves the sums as they are, and an extension drops it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptlab.data.tokens import Split
from gptlab.data.windows import Windows
from gptlab.errors import DivergedError
from gptlab.model.gpt import GPT
from gptlab.randomness import Purpose, random_bits
from gptlab.tracking.checkpoints import Progress
from gptlab.tracking.metrics import MetricsFile, Row
from gptlab.tracking.run import Run
from gptlab.training import checkpoint, optimizer
from gptlab.training.evaluate import autocast, evaluate
from gptlab.training.saver import Saver
from gptlab.training.settings import Settings, peak_flops
from gptlab.training.stopwatch import Interval, peak_memory_gib


class Observer(Protocol):
    """Whoever watches a run."""

    def step(self, step: int, loss: float | None) -> None:
        """A step is done; the loss is None where reading it would wait for the device."""

    def row(self, row: Row) -> None:
        """A row of metrics was written."""


@dataclass(frozen=True)
class Material:
    """What a run trains on and is judged by."""

    windows: Windows
    val: Split
    val_starts: NDArray[np.int64]


class Trainer:
    """One attempt's training, from the step where it stands to the step where it ends."""

    def __init__(
        self,
        run: Run,
        model: GPT,
        adamw: torch.optim.AdamW,
        material: Material,
        settings: Settings,
        metrics: MetricsFile,
        observer: Observer,
        *,
        attempt: int,
        start: int,
        progress: Progress,
    ) -> None:
        self.run, self.model, self.adamw, self.material = run, model, adamw, material
        self.settings, self.metrics, self.observer, self.attempt = settings, metrics, observer, attempt
        self.spec = run.record.spec
        self.step = start
        """Optimizer steps done."""
        self.progress = progress
        self._forward = cast(torch.nn.Module, torch.compile(model)) if settings.compile else model
        self._saver = Saver(run, model, adamw, metrics)
        self._pending: list[tuple[int, Tensor]] = []  # (loss, gradient norm) of steps not yet read from the device
        self._interval = Interval()
        self._last_loss = math.nan
        self._val_loss: tuple[int, float] | None = None

    def train(self, steps: int, stopped: Callable[[], bool]) -> None:
        """Train until `steps` are done or `stopped()`, and save; all that was saved is committed when this returns.

        Raises:
            DivergedError: A loss or gradient norm is not finite; the last checkpoint is older than that.
        """
        if stopped():  # while everything was being made ready
            return
        self.model.train()
        self._interval = Interval()
        with self._saver:
            self._begin(steps)
            while self.step < steps:
                self._train_step()
                stopping = stopped() and self.step < steps
                self._arrive(steps, stopping=stopping)
                if stopping:
                    break

    def _begin(self, steps: int) -> None:
        if self.step == 0:
            self._arrive(steps, stopping=False)
        elif self.progress.steps_since_row and (self._on_grid() or self.step == steps):
            self._write_row(last=self.step == steps)  # the checkpoint does not vouch for the row that was here
        elif self.step == steps and not self._evaluates():
            self._write_row(last=True)  # the row that it does vouch for has no validation

    def _train_step(self) -> None:
        started = time.perf_counter()
        batch = torch.from_numpy(self.material.windows.batch(self.step))  # (B, T + 1)
        if self.settings.device == "cuda":
            batch = batch.pin_memory()  # a copy from memory of other kinds waits for the step before
        batch = batch.to(self.settings.device, non_blocking=True)
        self._interval.data_s += time.perf_counter() - started
        if self.spec.model.dropout:
            torch.manual_seed(int(random_bits(self.run.record.seed, Purpose.STEP, self.step)[0]))
        with autocast(self.settings):
            loss = self._forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        norm = optimizer.gradient_norm(self.model)
        self._pending.append((self.step, torch.stack([loss.detach(), norm.detach()])))
        if self.settings.asynchronous:
            self._hold_back_unless_finite(loss.detach() + norm.detach())
        else:
            self._settle()  # raises before the update
        started += self._wait_for_saver()  # until the tensors may change
        optimizer.clipped_update(self.adamw, norm, self._max_norm)
        self.step += 1
        self._interval.step_s.append(time.perf_counter() - started)
        self.observer.step(self.step, None if self.settings.asynchronous else self._last_loss)

    def _wait_for_saver(self) -> float:
        """The seconds that it took, which are no part of a step."""
        started = time.perf_counter()
        if self._saver.in_flight:
            with self._interval.saving():
                self._saver.until_read()
        return time.perf_counter() - started

    @property
    def _max_norm(self) -> float:
        return self.spec.train.grad_clip or math.inf

    def _hold_back_unless_finite(self, number: Tensor) -> None:
        """Let fused AdamW skip this update on the device, without the host waiting to see the number."""
        if self.settings.fused:
            cast(Any, self.adamw).found_inf = (~number.isfinite()).float()

    def _settle(self) -> None:
        """Add what the device has computed to the sums."""
        if not self._pending:
            return
        sums = self.progress
        loss_sum, norm_sum, clipped = sums.loss_sum, sums.grad_norm_sum, sums.clipped
        steps, numbers = zip(*self._pending, strict=True)
        for step, (loss, norm) in zip(steps, torch.stack(numbers).tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"{self.run.id} diverged: after step {step} the loss is {loss} and the gradient norm {norm}; "
                    "try a smaller train.learning_rate",
                    after_step=step,
                    loss=str(loss),
                    grad_norm=str(norm),
                    window_starts=self.material.windows.starts(step).tolist(),
                )
            loss_sum, norm_sum, clipped = loss_sum + loss, norm_sum + norm, clipped + (norm > self._max_norm)
            self._last_loss = loss
        self.progress = sums.model_copy(
            update={
                "loss_sum": loss_sum,
                "grad_norm_sum": norm_sum,
                "clipped": clipped,
                "steps_since_row": sums.steps_since_row + len(self._pending),
            }
        )
        self._pending.clear()

    def _arrive(self, steps: int, *, stopping: bool) -> None:
        """Log and save what is due now."""
        step, train = self.step, self.spec.train
        best_before, last = self.progress.best_step, step == steps
        if last or self._on_grid():
            self._write_row(last=last)
        improved = step > 0 and self.progress.best_step != best_before
        if stopping or last or (step and step % train.checkpoint_every == 0):
            self._save(resumable=True)
        elif improved or (train.snapshots and checkpoint.is_snapshot(step)):
            self._save(resumable=False)

    def _on_grid(self) -> bool:
        return self.step % self.spec.train.log_every == 0 or self._evaluates()

    def _evaluates(self) -> bool:
        return self.step % self.spec.train.eval_every == 0

    def _write_row(self, *, last: bool) -> None:
        self._settle()
        step, train, windows = self.step, self.spec.train, self.material.windows
        batch_tokens = train.batch_size * train.sequence_length
        row: Row = {
            "step": step,
            "tokens": step * batch_tokens,
            "epoch": step * train.batch_size / windows.per_epoch,
            "attempt": self.attempt,
            "time": time.time(),
            "elapsed_s": self.progress.elapsed_s + self._interval.training_s(),
        }
        if count := self.progress.steps_since_row:
            row |= {
                "train/loss": self.progress.loss_sum / count,
                "optim/lr": train.learning_rate,
                "optim/grad_norm": self.progress.grad_norm_sum / count,
                "optim/clip_frac": self.progress.clipped / count,
            }
        row |= self._interval.performance(batch_tokens, asynchronous=self.settings.asynchronous)
        if "perf/tokens_per_s" in row and (peak := peak_flops(self.settings.device)):
            flops = 3 * self.spec.model.forward_flops_per_token(train.sequence_length)
            row["perf/mfu"] = row["perf/tokens_per_s"] * flops / peak
        if step:
            row["perf/peak_mem_gib"] = peak_memory_gib(self.settings.device)
        if last or self._evaluates():
            with self._interval.paused():
                row |= self._validate()
        self.metrics.append(row)
        if self._evaluates() or (self._on_grid() and not last):  # as it would be in a longer run
            self.progress = self.progress.model_copy(
                update={
                    "elapsed_s": row["elapsed_s"],
                    "metrics_bytes": self.metrics.size,
                    "loss_sum": 0.0,
                    "grad_norm_sum": 0.0,
                    "clipped": 0,
                    "steps_since_row": 0,
                }
            )
            self._interval = Interval()
        self.observer.row(row)

    def _validate(self) -> Row:
        started = time.perf_counter()
        train = self.spec.train
        evaluation = evaluate(
            self._forward,
            self.material.val,
            self.material.val_starts,
            sequence_length=train.sequence_length,
            settings=self.settings,
        )
        if not math.isfinite(evaluation.loss):
            raise DivergedError(
                f"{self.run.id} diverged: at step {self.step} the validation loss is {evaluation.loss}; "
                "try a smaller train.learning_rate",
                after_step=self.step,
                val_loss=str(evaluation.loss),
            )
        if self._evaluates():
            self._val_loss = self.step, evaluation.loss
            best = self.progress.best_val_loss
            if best is None or evaluation.loss < best:
                update = {"best_val_loss": evaluation.loss, "best_step": self.step}
                self.progress = self.progress.model_copy(update=update)
        row: Row = {"val/loss": evaluation.loss}
        if len(evaluation.window_losses) > 1:
            row["val/loss_se"] = evaluation.loss_se
        return row | {
            "val/bpb": evaluation.bits_per_byte,
            "val/yardstick": evaluation.yardstick,
            "perf/eval_s": time.perf_counter() - started,
        }

    def _save(self, *, resumable: bool) -> None:
        self._settle()
        losses = {"train/loss": None if math.isnan(self._last_loss) else self._last_loss}
        if self._val_loss and self._val_loss[0] == self.step:
            losses["val/loss"] = self._val_loss[1]
        progress = self.progress.model_copy(update={"elapsed_s": self.progress.elapsed_s + self._interval.training_s()})
        with self._interval.saving():
            self._saver.save(self.step, progress, losses, resumable=resumable)
