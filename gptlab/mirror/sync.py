"""Find the runs that are incomplete in W&B, and upload what is missing.

A run's directory has everything that W&B should have. So a run is synced by mirroring it online without training: W&B
returns its last row and receives the later ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from gptlab.errors import GptlabError
from gptlab.files import write_durably
from gptlab.mirror.mirror import Mirror
from gptlab.mirror.modes import SYNC
from gptlab.tracking.history import ATTEMPTS
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run, all_runs, skip_unreadable
from gptlab.untrusted import Count, read_document

SYNCED = "wandb/synced.json"


class SyncedSizes(BaseModel):
    """Sizes of a run's files when W&B last had everything. If the current sizes differ, the run is pending."""

    attempts_bytes: Count
    metrics_bytes: Count

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the current sizes."""
        return cls(attempts_bytes=_size(run.directory / ATTEMPTS), metrics_bytes=_size(run.directory / METRICS))

    def save(self, run: Run) -> None:
        """Record in the run's directory that W&B has everything up to these sizes."""
        write_durably(run.directory / SYNCED, self.model_dump_json() + "\n")


@dataclass(frozen=True)
class SyncResult:
    """The outcome of syncing one run."""

    run: str
    synced: bool
    step: int | None = None
    """The last step that W&B has now."""
    url: str | None = None
    problem: str | None = None


def pending_runs() -> list[Run]:
    """Return the runs that were mirrored before, are not training and are incomplete in W&B."""
    return [run for run, pending in skip_unreadable(lambda run: (run, _is_pending(run)), all_runs()) if pending]


def sync_run(run: Run) -> SyncResult:
    """Upload whatever W&B is missing of a run. A failure is part of the result."""
    history = run.history()
    if not history.starts:
        return SyncResult(run.id, synced=False, problem="it was never trained")
    if history.status == "running":
        return SyncResult(run.id, synced=False, problem="it is still training; sync it when training has ended")
    mirror = Mirror(run, SYNC, notice=lambda _: None)
    mirror.notify()
    mirror.finish()
    report = mirror.report
    problem = None if "step" in report else report.get("error") or report.get("reason")
    return SyncResult(run.id, "step" in report, report.get("step"), report.get("url"), problem)


def _is_pending(run: Run) -> bool:
    if not (run.directory / "wandb").is_dir() or run.history().status == "running":
        return False
    try:
        return read_document(run.directory / SYNCED, SyncedSizes) != SyncedSizes.of(run)
    except (FileNotFoundError, GptlabError):
        return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
