"""`metrics.jsonl`, one row per logged step: its columns, writing and reading."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Required, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from gptlab.untrusted import Count, read_json_lines, read_json_lines_from, torn_bytes

METRICS = "metrics.jsonl"
Row = dict[str, Any]

COLUMNS: dict[str, str] = {
    "step": "optimizer steps done",
    "tokens": "tokens trained on so far",
    "epoch": "passes over the training text so far",
    "attempt": "number of the attempt that wrote the row, from 1",
    "time": "Unix time in seconds",
    "elapsed_s": "seconds of training over all attempts, without evaluation and saving",
    "cpu_s": "CPU seconds of the process in that time, all threads together, over all attempts",
    "train/loss": "nats per token, mean over the steps since the last row",
    "val/loss": "nats per token, mean over the validation windows",
    "val/loss_se": "its standard error over those windows",
    "val/bpb": "bits per byte of the predicted text",
    "val/yardstick": "hash of what val/loss was measured on; only equal yardsticks are comparable",
    "optim/lr": "learning rate",
    "optim/grad_norm": "global gradient norm before clipping, mean over the steps since the last row",
    "optim/clip_frac": "fraction of those steps whose gradient was clipped",
    "perf/tokens_per_s": "training tokens per second since the last row, without evaluation and saving",
    "perf/step_ms": "milliseconds per step since the last row: the median on a CPU, the mean elsewhere",
    "perf/data_wait_frac": "fraction of training time spent on building batches",
    "perf/mfu": "model FLOPs utilization: model FLOP/s over the device's bfloat16 peak, if that is known",
    "perf/peak_mem_gib": "peak memory so far, in GiB (GPU memory on CUDA, resident memory elsewhere)",
    "perf/eval_s": "seconds of this row's validation",
    "perf/ckpt_s": "seconds that training waited for background checkpoints since the last row",
}
"""The columns and their meanings."""

COUNTS = ("step", "tokens", "attempt")
"""Integer columns. `val/yardstick` holds text, all others hold floats."""

DETERMINISTIC = (
    "step",
    "tokens",
    "epoch",
    "train/loss",
    "val/loss",
    "val/loss_se",
    "val/bpb",
    "val/yardstick",
    "optim/lr",
    "optim/grad_norm",
    "optim/clip_frac",
)
"""The columns that training the same run again reproduces exactly."""


def _types() -> dict[str, Any]:
    types: dict[str, Any] = dict.fromkeys(COLUMNS, float) | dict.fromkeys(COUNTS, Count)
    return types | {"val/yardstick": str, "step": Required[Count]}


# mypy does not support a TypedDict with computed keys.
_ROW: TypeAdapter[Row] = TypeAdapter(TypedDict("_Row", _types(), total=False))  # type: ignore[operator]


class MetricsFile:
    """`metrics.jsonl`, opened for appending by the process that trains the run."""

    def __init__(self, directory: Path, size: int) -> None:
        """Open the file and truncate it to `size` bytes, and to its last complete row if it is shorter.

        Args:
            directory: The run's directory.
            size: The file's length when the checkpoint was saved; later rows are computed again.
        """
        self.path = directory / METRICS
        self._file = self.path.open("ab")
        complete = self.size - torn_bytes(self.path)
        self._file.truncate(min(size, complete))  # truncating to more than the file's length would append NULs

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, row: Mapping[str, Any]) -> None:
        """Write and flush one row. Non-finite numbers become strings such as "nan", because JSON has none."""
        document = {key: _encode(value) for key, value in row.items()}
        self._file.write(json.dumps(document, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush all rows to the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class NewRows:
    """An iterable of a run's new rows: each iteration yields those written since the previous one."""

    def __init__(self, directory: Path) -> None:
        self._path, self._read = directory / METRICS, 0
        self.last_step = -1
        """Step of the last row that was read; −1 before the first."""

    def __iter__(self) -> Iterator[Row]:
        for row, size in read_json_lines_from(self._path, self._read, _ROW):
            self._read += size
            self.last_step = row["step"]
            yield row


def read_metrics(directory: Path) -> list[Row]:
    """Return all rows of a run; a torn last line is skipped. Each row has a step and some of the other `COLUMNS`.

    Raises:
        GptlabError: A complete line is invalid; the message names file and line.
    """
    return list(read_json_lines(directory / METRICS, _ROW))


def last_value(rows: list[Row], column: str) -> Any:
    """Return the newest value of a column, or None if no row has it."""
    return next((row[column] for row in reversed(rows) if column in row), None)


def _encode(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
