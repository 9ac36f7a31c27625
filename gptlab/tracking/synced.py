"""Which runs W&B lacks something of, and sending it: `gptlab sync`.

Everything that W&B should have is in the run's directory, whatever became of earlier attempts to send it. So syncing a
run is what mirroring it online is, without training: W&B says what its last row is, and gets the later ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from gptlab.errors import GptlabError
from gptlab.tracking.files import write_durably
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.mirror import SYNC, Mirror
from gptlab.tracking.reading import Count, read_document
from gptlab.tracking.run import ATTEMPTS, Run, all_runs, each

SYNCED = "wandb/synced.json"


class Content(BaseModel):
    """How much a run's directory has for W&B: both files only grow, or are cut and grow again."""

    attempts_bytes: Count
    metrics_bytes: Count

    @classmethod
    def of(cls, run: Run) -> Self:
        """What is there now."""
        return cls(attempts_bytes=_size(run.directory / ATTEMPTS), metrics_bytes=_size(run.directory / METRICS))

    def note_synced(self, run: Run) -> None:
        """Keep in the run that W&B has this much."""
        write_durably(run.directory / SYNCED, self.model_dump_json() + "\n")


@dataclass(frozen=True)
class Synced:
    """What became of syncing one run."""

    run: str
    synced: bool
    step: int | None = None
    """The last one that W&B has now."""
    url: str | None = None
    problem: str | None = None

    def line(self) -> str:
        """For people."""
        if not self.synced:
            return f"{self.run}  not synced: {self.problem}"
        return f"{self.run}  synced up to step {self.step}: {self.url}"


def behind() -> list[Run]:
    """The runs that were mirrored once, are not being trained, and have something that W&B lacks."""
    looked_at = each(lambda run: (run, _is_behind(run)), all_runs())
    return [run for run, is_behind in looked_at if is_behind]


def sync(run: Run) -> Synced:
    """Bring W&B up to date with a run."""
    if not run.starts():
        return Synced(run.id, synced=False, problem="it was never trained")
    if run.status() == "running":
        return Synced(run.id, synced=False, problem="it is being trained; sync it when it has ended")
    mirror = Mirror(run, SYNC, notice=lambda _: None)
    mirror.nudge()
    mirror.finish()
    said = mirror.said
    return Synced(run.id, "step" in said, said.get("step"), said.get("url"), said.get("problem"))


def _is_behind(run: Run) -> bool:
    if not (run.directory / "wandb").is_dir() or run.status() == "running":
        return False
    try:
        return read_document(run.directory / SYNCED, Content) != Content.of(run)
    except (FileNotFoundError, GptlabError):
        return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
