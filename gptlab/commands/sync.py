"""`gptlab sync`: upload whatever W&B is missing of the runs."""

from collections.abc import Iterator

from gptlab.mirror.sync import SyncResult, pending_runs, sync_run
from gptlab.tracking.run import Run


def sync_runs(runs: list[Run] | None) -> Iterator[SyncResult]:
    """Sync runs one after the other, by default every run of which W&B is missing something."""
    return map(sync_run, pending_runs() if runs is None else runs)


def line(result: SyncResult) -> str:
    """Return the result of one run as a line."""
    if not result.synced:
        return f"{result.run}  not synced: {result.problem}"
    return f"{result.run}  synced up to step {result.step}: {result.url}"
