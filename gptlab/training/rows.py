"""Write the rows of `metrics.jsonl`, from sums over the steps since the last row.

Rows are written at the first step, at multiples of `log_every` and `eval_every` (together the grid) and, with a
validation, at the last step. A last row that a longer run would not have leaves the sums unchanged, and extending the
run drops it. A branch begins with a row at its parent's step and with empty sums; tokens and seconds go on.
"""

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gptlab.data.windows import Windows
from gptlab.distributed.workers import SINGLE, Workers
from gptlab.errors import DivergedError
from gptlab.tracking.metrics import COLUMNS, Row
from gptlab.tracking.records import RunRecord
from gptlab.training.evaluate import Evaluation
from gptlab.training.schedule import learning_rates
from gptlab.training.settings import Settings, peak_flops
from gptlab.training.state import TrainingState
from gptlab.training.stopwatch import Stopwatch, peak_memory_gib


class Metrics(Protocol):
    """Where rows are appended; see `MetricsFile`."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""

    def checksum(self) -> str:
        """Return the xxh3_128 of all rows, in hexadecimal."""


class NoMetrics:
    """Keeps no rows, in a process whose rows another process writes as its own."""

    size = 0

    def append(self, row: Mapping[str, Any]) -> None:
        """See `Metrics`."""

    def checksum(self) -> str:
        """See `Metrics`."""
        return ""


class RowWriter:
    """Collects losses and gradient norms, and writes their means as rows."""

    def __init__(
        self,
        record: RunRecord,
        attempt: int,
        windows: Windows,
        settings: Settings,
        metrics: Metrics,
        state: TrainingState,
        workers: Workers = SINGLE,
    ) -> None:
        """Continue from the sums of a checkpoint.

        Args:
            record: The run's record.
            attempt: Number of the attempt, from 1.
            windows: The training windows.
            settings: The device, precision and kernels.
            metrics: The file to append to.
            state: Its `loop` holds the sums since the last row on the grid, and the best validation loss so far.
            workers: The processes that train together. Each computes a part of the tokens.
        """
        self._record, self.attempt, self._windows = record, attempt, windows
        self._run, self._spec = record.run, record.spec
        self._learning_rate = learning_rates(record.spec.train)
        self._settings, self._metrics = settings, metrics
        self._state, self._workers = state, workers
        self.stopwatch = Stopwatch()
        self.last_losses: dict[str, float | None] = {"train/loss": None}
        """Losses of the newest step: of training, and of validation if there was one on the grid."""
        self._pending: list[tuple[int, Tensor]] = []  # (step, (loss, gradient norm)) not yet read from the device
        self._copying: tuple[list[int], Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Add the loss and gradient norm (scalars) of a step, counted from 0. On a CPU they are read at once.

        Raises:
            DivergedError: See `settle`.
        """
        self._pending.append((step, torch.stack([loss, norm])))
        if not self._settings.asynchronous:
            self.settle()

    def settle(self) -> None:
        """Read pending results from the device and add them to the sums.

        Raises:
            DivergedError: A loss or a gradient norm is not finite.
        """
        self._settle_copied()
        if self._pending:
            self.start_copy()
            self._settle_copied()

    def start_copy(self) -> None:
        """Let the device copy pending results to the host when it has computed them, without waiting for it."""
        steps, results = zip(*self._pending, strict=True)
        copy, copied = torch.stack(results).to("cpu", non_blocking=True), None
        if self._settings.device == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            copied.record()
        self._copying = list(steps), copy, copied
        self._pending.clear()

    def _settle_copied(self) -> None:
        if self._copying is None:
            return
        steps, copy, copied = self._copying
        self._copying = None
        if copied:
            copied.synchronize()
        loop, max_norm = self._state.loop, self._spec.train.max_grad_norm
        loss_sum, norm_sum, clipped = loop.loss_sum, loop.grad_norm_sum, loop.clipped
        for step, (loss, norm) in zip(steps, copy.tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"{self._run} diverged: after step {step} the loss is {loss} and the gradient norm {norm}; "
                    "try a smaller train.learning_rate",
                    after_step=step,
                    loss=str(loss),
                    grad_norm=str(norm),
                    window_starts=self._windows.starts(step).tolist(),
                )
            loss_sum, norm_sum, clipped = loss_sum + loss, norm_sum + norm, clipped + (norm > max_norm)
            self.last_losses = {"train/loss": loss}
        self._state.loop = loop.model_copy(
            update={
                "loss_sum": loss_sum,
                "grad_norm_sum": norm_sum,
                "clipped": clipped,
                "steps_since_row": loop.steps_since_row + len(steps),
            }
        )

    def training_row(self, step: int) -> Row:
        """Return the columns of a row that do not depend on validation.

        Args:
            step: The row's step. A later step may have started, if the results of this one are being copied.

        Raises:
            DivergedError: See `settle`.
        """
        if self._copying is None:
            self.settle()
        else:
            self._settle_copied()
        train, loop = self._spec.train, self._state.loop
        batch_tokens = train.batch_size * train.sequence_length
        row: Row = {
            "step": step,
            "tokens": self._record.tokens_at(step),
            "epoch": self._windows.epochs(step),
            "attempt": self.attempt,
            "time": time.time(),
            "elapsed_s": self.elapsed_s(),
        }
        if (cpu_s := self.cpu_s()) is not None:
            row["cpu_s"] = cpu_s
        if count := loop.steps_since_row:
            row |= {
                "train/loss": loop.loss_sum / count,
                "optim/lr": self._learning_rate(step - 1),  # of the newest update
                "optim/grad_norm": loop.grad_norm_sum / count,
                "optim/clip_frac": loop.clipped / count,
            }
        row |= self.stopwatch.performance(
            batch_tokens, steps_ahead=self._state.step - step, asynchronous=self._settings.asynchronous
        )
        if "perf/tokens_per_s" in row and (peak := peak_flops(self._settings.device)):
            row["perf/mfu"] = row["perf/tokens_per_s"] * self._record.flops_per_token / (peak * self._workers.size)
        if step > self._record.start_step:
            row["perf/peak_mem_gib"] = peak_memory_gib(self._settings.device)
        return row

    def validation_row(self, step: int, evaluation: Evaluation, seconds: float, *, on_grid: bool) -> Row:
        """Return the columns of a row that depend on validation, and update the best loss if `on_grid`.

        Raises:
            DivergedError: The validation loss is not finite.
        """
        if not math.isfinite(evaluation.loss):
            raise DivergedError(
                f"{self._run} diverged: at step {step} the validation loss is {evaluation.loss}; "
                "try a smaller train.learning_rate",
                after_step=step,
                val_loss=str(evaluation.loss),
            )
        if on_grid:
            self.last_losses["val/loss"] = evaluation.loss
            best = self._state.loop.best_val_loss
            if best is None or evaluation.loss < best:
                update = {"best_val_loss": evaluation.loss, "best_step": step}
                self._state.loop = self._state.loop.model_copy(update=update)
        row: Row = {"val/loss": evaluation.loss}
        if len(evaluation.window_losses) > 1:
            row["val/loss_se"] = evaluation.loss_se
        return row | {
            "val/bpb": evaluation.bits_per_byte,
            "val/yardstick": evaluation.yardstick,
            "perf/eval_s": seconds,
        }

    def write(self, row: Row, *, starts_interval: bool) -> None:
        """Append a row.

        Args:
            row: The row.
            starts_interval: Whether to reset the sums, as after every row that a longer run has too.
        """
        if unknown := row.keys() - COLUMNS.keys():
            raise ValueError(f"these columns are not in COLUMNS: {', '.join(sorted(unknown))}")
        self._metrics.append(row)
        if starts_interval:
            self._state.loop = self._state.loop.model_copy(
                update={
                    "elapsed_s": row["elapsed_s"],
                    "cpu_s": row.get("cpu_s"),
                    "metrics_bytes": self._metrics.size,
                    "metrics_xxh3": self._metrics.checksum(),
                    "loss_sum": 0.0,
                    "grad_norm_sum": 0.0,
                    "clipped": 0,
                    "steps_since_row": 0,
                }
            )
            self.stopwatch = self.stopwatch.next(steps_ahead=self._state.step - row["step"])

    def elapsed_s(self) -> float:
        """Seconds of training over all attempts."""
        return self._state.loop.elapsed_s + self.stopwatch.training_s()

    def cpu_s(self) -> float | None:
        """CPU seconds of training over all attempts; None if an earlier attempt did not measure them."""
        before = self._state.loop.cpu_s
        return None if before is None else before + self.stopwatch.cpu_s()

    def restart_stopwatch(self) -> None:
        """Restart the time measurement, so that preparation does not count as training."""
        self.stopwatch = Stopwatch()
