"""`--profile`: record a profile of a few training steps."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP, RECORDED = 3, 3
"""Number of first steps to skip, because they are slow, and number of steps to record after them."""


class Profiler:
    """A context manager around training that records a profile if it is enabled.

    Writes `profile/trace.json`, for chrome://tracing or Perfetto, and `profile/operators.txt` in the run's directory.
    """

    def __init__(self, run_directory: Path, notice: Callable[[str], None], *, enabled: bool) -> None:
        self._folder, self._notice, self._done = run_directory / "profile", notice, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = (
            profile(
                activities=activities,
                schedule=schedule(wait=WARM_UP - 1, warmup=1, active=RECORDED, repeat=1),
                on_trace_ready=self._write,
                profile_memory=True,
            )
            if enabled
            else None
        )

    def __enter__(self) -> Self:
        if self._profile:
            self._profile.start()
        return self

    def step(self) -> None:
        """Record that a training step is done."""
        if self._profile and not self._done:
            self._profile.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile and not self._done:
            self._profile.stop()
            if not self._done:
                self._notice(f"no profile was recorded: it takes {WARM_UP + RECORDED} steps of one attempt")

    def _write(self, finished: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        finished.export_chrome_trace(str(self._folder / "trace.json"))
        table = finished.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (self._folder / "operators.txt").write_text(table)
        self._done = True
        self._notice(f"the profile of {RECORDED} steps is in {self._folder}")
