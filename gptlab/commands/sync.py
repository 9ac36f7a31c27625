"""`gptlab sync`: upload whatever W&B is missing of the runs."""

from collections.abc import Iterator

from gptlab.mirror.sync import SyncResult, pending_runs, sync_run, upload_states
from gptlab.terminal.text import printable
from gptlab.tracking.run import Run, run_directories


def sync_runs(runs: list[Run] | None) -> Iterator[SyncResult]:
    """Sync runs one after the other, by default every run of which W&B is missing something."""
    return map(sync_run, pending_runs() if runs is None else runs)


def line(result: SyncResult) -> str:
    """Return the result of one run as a line."""
    if not result.synced:
        return printable(f"{result.run}  not synced: {result.problem}")
    return printable(f"{result.run}  synced up to step {result.step}: {result.url}")


def nothing_to_upload() -> str:
    """Return a line for the case that no run is pending: that W&B has everything, or of which runs this is unknown."""
    states = upload_states()
    originals = {run.id for run, state in states if state != "copy"}
    numbers = {
        "still training": sum(state == "training" for _, state in states),
        "renamed": sum(state == "copy" and run.id not in originals for run, state in states),
        "unreadable": len(run_directories()) - len(states),
    }
    if any(numbers.values()):
        named = [f"{number} {what}" for what, number in numbers.items() if number]
        return f"nothing to upload now; runs that may be incomplete in W&B: {', '.join(named)}"
    return "nothing to upload: all mirrored runs are complete in W&B"
