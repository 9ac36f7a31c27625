"""Find the runs that are incomplete in W&B, and upload what is missing.

A run's directory has everything that W&B should have. So a run is synced by mirroring it online without training: W&B
returns its last row and receives the later ones.

The start of an attempt records whether W&B should have it, before the mirror does anything. So a run is found to be
incomplete whatever happened to its mirror.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel

from gptlab.errors import GptlabError
from gptlab.files import write_durably
from gptlab.mirror.mirror import Mirror, copy_problem
from gptlab.mirror.modes import SYNC
from gptlab.tracking.history import ATTEMPTS, History
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run, all_runs, skip_unreadable
from gptlab.untrusted import Count, read_document

SYNCED = "wandb/synced.json"

State = Literal["complete", "pending", "training", "private", "copy"]
"""What W&B has of a run.

complete: every row, as the server has confirmed
pending: not every row
training: what the run's own mirror has sent so far
private: nothing, because no attempt was mirrored
copy: nothing under the name of its directory
"""


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


def upload_states() -> list[tuple[Run, State]]:
    """Return every run that can be read, with what W&B has of it."""
    return list(skip_unreadable(lambda run: (run, _state(run)), all_runs()))


def pending_runs() -> list[Run]:
    """Return the runs that were mirrored before, or should have been, are not training and are incomplete in W&B."""
    return [run for run, state in upload_states() if state == "pending"]


def sync_run(run: Run) -> SyncResult:
    """Upload whatever W&B is missing of a run. A failure is part of the result."""
    try:
        problem = copy_problem(run) or _problem(run.history())
        if problem:
            return SyncResult(run.id, synced=False, problem=problem)
        mirror = Mirror(run, SYNC, notice=lambda _: None)
        mirror.notify()
        mirror.finish()
    except (GptlabError, OSError) as error:
        return SyncResult(run.id, synced=False, problem=str(error))
    report = mirror.report
    problem = None if "step" in report else report.get("error") or report.get("reason")
    return SyncResult(run.id, "step" in report, report.get("step"), report.get("url"), problem)


def _problem(history: History) -> str | None:
    if not history.starts:
        return "it was never trained"
    if history.status == "running":
        return "it is still training; sync it when training has ended"
    return history.damage


def _state(run: Run) -> State:
    history = run.history()
    if copy_problem(run):
        return "copy"
    mirrored = (run.directory / "wandb").is_dir()  # by an attempt before the field existed, or by `gptlab sync`
    if not mirrored and all(start.get("wandb", "off") == "off" for start in history.starts):
        return "private"
    if history.status == "running":
        return "training"
    try:
        complete = read_document(run.directory / SYNCED, SyncedSizes) == SyncedSizes.of(run)
    except (FileNotFoundError, GptlabError):
        complete = False
    return "complete" if complete else "pending"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
