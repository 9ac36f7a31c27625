"""`metrics.jsonl`, one row per logged step: its columns, writing and reading."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Required, Self

import xxhash
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from gptlab.untrusted import (
    Count,
    lines_backwards,
    open_regular,
    parse_row,
    read_json_lines_from,
    torn_bytes,
)

METRICS = "metrics.jsonl"
Row = dict[str, Any]

SAMPLE_BYTES = 1 << 23
"""Files that are longer are read in blocks for a plot."""
SAMPLE_BLOCKS = 64

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
ROW: TypeAdapter[Row] = TypeAdapter(TypedDict("_Row", _types(), total=False))  # type: ignore[operator]


class MetricsFile:
    """`metrics.jsonl`, opened for appending by the process that trains the run."""

    def __init__(self, directory: Path, size: int) -> None:
        """Open the file and truncate it.

        Args:
            directory: The run's directory.
            size: The length of the rows to keep; later rows are computed again.
        """
        self.path = directory / METRICS
        self._file = self.path.open("ab", buffering=0)  # a buffer would write a failed row again on closing
        complete = self._file.tell() - torn_bytes(self.path)
        self.size = min(size, complete)  # truncating to more than the file's length would append NULs
        """Length of the complete rows in bytes."""
        self._file.truncate(self.size)
        self._checksum = xxhash.xxh3_128()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                self._checksum.update(block)

    def checksum(self) -> str:
        """Return the xxh3_128 of the complete rows, in hexadecimal."""
        return self._checksum.hexdigest()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Non-finite numbers become strings such as "nan", because JSON has none."""
        document = {key: _encode(value) for key, value in row.items()}
        line = json.dumps(document, allow_nan=False).encode() + b"\n"
        written = 0
        while written < len(line):
            written += self._file.write(line[written:])
        self.size += len(line)
        self._checksum.update(line)

    def sync(self) -> None:
        """Flush all rows to the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class NewRows:
    """An iterable of a run's new rows: each iteration yields those written since the previous one."""

    def __init__(self, directory: Path, start: int = 0) -> None:
        self._path = directory / METRICS
        self.position = start
        """Length of the rows that were read or skipped, in bytes."""
        self.last_step = -1
        """Step of the last row that was read; −1 before the first."""

    def __iter__(self) -> Iterator[Row]:
        for row, size in read_json_lines_from(self._path, self.position, ROW):
            self.position += size
            self.last_step = row["step"]
            yield row


def read_metrics(directory: Path) -> list[Row]:
    """Return all rows of a run. A long run has millions, so prefer `stream_metrics` or `newest_values`."""
    return list(stream_metrics(directory))


def stream_metrics(directory: Path) -> Iterator[Row]:
    """Yield all rows of a run; a torn last line is skipped. Each row has a step and some of the other `COLUMNS`.

    Raises:
        GptlabError: A complete line is invalid; the message names file and line.
    """
    return (row for row, _ in read_json_lines_from(directory / METRICS, 0, ROW))


def sample_metrics(directory: Path, max_bytes: int = SAMPLE_BYTES) -> Iterator[Row]:
    """Yield rows for a plot: all of a short file, and those in evenly spaced blocks of a long one.

    Raises:
        GptlabError: A line that is read is invalid; the message names the file.
    """
    try:
        with open_regular(directory / METRICS) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= max_bytes:
                yield from stream_metrics(directory)
                return
            for number in range(SAMPLE_BLOCKS):
                start = (size - max_bytes // SAMPLE_BLOCKS) * number // (SAMPLE_BLOCKS - 1)
                file.seek(start)
                block = file.read(max_bytes // SAMPLE_BLOCKS)
                complete = block.split(b"\n")[1 if start else 0 : -1]
                for line in complete:
                    yield parse_row(f"{file.name}, after byte {start:,}", line, ROW)
    except FileNotFoundError:
        return


def newest_values(directory: Path, columns: Iterable[str]) -> Row:
    """Return the newest value of each of these columns that any row has. The file is read from its end.

    Raises:
        GptlabError: A row with one of the columns is invalid; the message names the file.
    """
    found: Row = {}
    missing = {column: f'"{column}"'.encode() for column in columns}
    try:
        with open_regular(directory / METRICS) as file:
            for line in lines_backwards(file):
                if any(key in line for key in missing.values()):  # parsing every row would be slow
                    row = parse_row(f"{file.name}, near its end", line, ROW)
                    found |= {column: row[column] for column in missing if column in row}
                    missing = {column: key for column, key in missing.items() if column not in row}
                    if not missing:
                        break
    except FileNotFoundError:
        pass
    return found


def _encode(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
