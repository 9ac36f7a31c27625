"""Measure time and memory of training, for the columns `perf/*`."""

import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gptlab.tracking.metrics import Row
from gptlab.training.settings import Device


class Stopwatch:
    """Measures training time since the last row of metrics."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._started_cpu = time.process_time()
        self._paused_s = self._paused_cpu_s = 0.0
        self.step_s: list[float] = []
        """Seconds of each step."""
        self.data_s = 0.0
        """Seconds spent on building batches."""
        self.saving_s = 0.0
        """Seconds spent on waiting for checkpoints."""

    def training_s(self) -> float:
        """Return the seconds of training so far, without pauses."""
        return time.perf_counter() - self._started - self._paused_s

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process, all threads together, in the time of `training_s`."""
        return time.process_time() - self._started_cpu - self._paused_cpu_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context manager whose duration does not count as training."""
        started, started_cpu = time.perf_counter(), time.process_time()
        yield
        self._paused_s += time.perf_counter() - started
        self._paused_cpu_s += time.process_time() - started_cpu

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A pause that also counts as waiting for a checkpoint."""
        before = self._paused_s
        with self.paused():
            yield
        self.saving_s += self._paused_s - before

    def next(self, *, steps_ahead: int) -> "Stopwatch":
        """Return the stopwatch of the next interval, which the last steps belong to that have already started."""
        following = Stopwatch()
        following.step_s = self.step_s[len(self.step_s) - steps_ahead :]
        return following

    def performance(self, batch_tokens: int, *, steps_ahead: int = 0, asynchronous: bool) -> Row:
        """Return the columns `perf/*` for the steps so far; none before the first step.

        `perf/step_ms` is a median, but a mean on an asynchronous device, where single steps cannot be timed. The last
        `steps_ahead` steps have only started.
        """
        step_s = self.step_s[: len(self.step_s) - steps_ahead]
        if not step_s:
            return {}
        seconds = self.training_s()
        row: Row = {
            "perf/tokens_per_s": len(step_s) * batch_tokens / seconds,
            "perf/step_ms": 1e3 * (seconds / len(step_s) if asynchronous else statistics.median(step_s)),
            "perf/data_wait_frac": self.data_s / seconds,
        }
        return row | ({"perf/ckpt_s": self.saving_s} if self.saving_s else {})


def peak_memory_gib(device: Device) -> float:
    """Return the peak memory so far in GiB: GPU memory on CUDA, resident memory elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "linux":  # ru_maxrss starts at the memory of the parent process there
        (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(peak) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
