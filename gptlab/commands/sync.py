"""`gptlab sync`: upload whatever W&B is missing."""

from collections.abc import Callable

from gptlab.mirror.sync import SyncResult, pending_runs, sync_run
from gptlab.tracking.run import Run


def sync_runs(runs: list[Run] | None, report: Callable[[SyncResult], None]) -> list[SyncResult]:
    """Sync runs one after the other and report each result; None syncs every mirrored run that is incomplete in W&B."""
    results = []
    for run in pending_runs() if runs is None else runs:
        results.append(sync_run(run))
        report(results[-1])
    return results
