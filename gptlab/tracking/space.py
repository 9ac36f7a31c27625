"""Disk space of runs: what each takes, and what can be removed from a complete one.

`gptlab gc --optimizer` removes optimizer states, which only resuming and branching need. The run keeps its weights, so
it can be evaluated and sampled; it cannot be extended any more. `gptlab gc --snapshots` removes weights that
`train.snapshots` kept for the analysis of weights over training.

These stay:
- everything of a run that is being trained, is not complete or is damaged, or whose last checkpoint is not intact,
  because resuming may need any of its checkpoints;
- the newest and the best weights;
- checkpoints of `train.keep_steps`, and those that other runs start from, also runs in the trash.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.checkpoints.manifest import (
    MODEL,
    OPTIMIZER,
    Checkpoint,
    compute_digest,
    list_checkpoints,
)
from gptlab.checkpoints.retention import NeededSteps, discard, is_snapshot, remove_optimizer_state
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import locked_directory
from gptlab.terminal.text import shell_command
from gptlab.tracking.history import History
from gptlab.tracking.lineage import Child, needed_steps
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import Run
from gptlab.untrusted import check_no_hard_links


@dataclass(frozen=True)
class Removable:
    """What can be removed from a run without losing its results."""

    optimizer_states: tuple[Checkpoint, ...] = ()
    """The checkpoints whose optimizer states can be removed, by step."""
    snapshots: tuple[Checkpoint, ...] = ()
    """The checkpoints that are only snapshots of the weights, by step."""
    kept: tuple[Checkpoint, ...] = ()
    """The checkpoints whose optimizer states stay, because of `train.keep_steps` or of other runs."""

    @property
    def optimizer_bytes(self) -> int:
        """Size of the optimizer states."""
        return sum(disk_usage(checkpoint.directory / OPTIMIZER) for checkpoint in self.optimizer_states)

    @property
    def snapshot_bytes(self) -> int:
        """Size of the snapshots."""
        return sum(disk_usage(checkpoint.directory) for checkpoint in self.snapshots)


def find_removable(run: Run, history: History, children: Sequence[Child] | None = None) -> Removable:
    """Return what can be removed from a run; nothing unless it is complete.

    Args:
        run: The run.
        history: Its history.
        children: See `needed_steps`.
    """
    if history.status != "complete" or run.is_copy or history.damage:  # a copy is a backup
        return Removable()
    return _find_removable(run, history, needed_steps(run.directory, run.id, children))


def remove(run: Run, *, optimizer_states: bool, snapshots: bool) -> int:
    """Remove what can be removed from a complete run, and return the number of bytes.

    The last checkpoint is the last to lose its optimizer state. So a crash at any moment leaves a run that resumes from
    it or refuses to resume, and never one that resumes from an older state.

    Raises:
        GptlabError: The run is being trained, its weights are damaged, or a file cannot be written.
    """
    check_no_hard_links(run.directory)
    with RunLock(run.directory):
        history = run.history()
        if history.outcome != "complete" or history.damage:
            return 0
        for checkpoint in list_checkpoints(run.directory)[-1:]:
            _check_weights(checkpoint)
        with locked_directory(run.directory.parent):  # so that no branch begins with a state that is removed
            found = _find_removable(run, history, needed_steps(run.directory, run.id))
            removed = 0
            for checkpoint in found.optimizer_states if optimizer_states else ():  # oldest first, see above
                removed += disk_usage(checkpoint.directory / OPTIMIZER)
                remove_optimizer_state(checkpoint)
            for checkpoint in found.snapshots if snapshots else ():
                removed += disk_usage(checkpoint.directory)
                discard(checkpoint.directory)
    return removed


def check_optimizer_state_is_kept(run: Run, history: History) -> None:
    """Check that training can continue from the end of a run, even if an older checkpoint has an optimizer state.

    Raises:
        BadInputError: The run is complete and holds only the weights of its last step.
    """
    if history.holds_weights_only:
        new_run = shell_command("run", run.record.spec.name, "--from", run.reference)
        raise BadInputError(
            f"{run.id} cannot continue from its last step: it is complete and holds only weights, because `gptlab gc "
            f"--optimizer` removed its optimizer state; `{new_run}` starts another run from its weights, and `gptlab "
            "run` with --fresh computes it again"
        )


def disk_usage(path: Path) -> int:
    """Return the bytes of the files in a directory, as far as it can be read; symbolic links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return _file_size(path)
    return sum(_file_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # unreadable, or removed in the meantime
        return 0


def _find_removable(run: Run, history: History, needed: NeededSteps) -> Removable:
    checkpoints, train = list_checkpoints(run.directory), run.record.spec.train
    if not checkpoints or checkpoints[-1].step != history.step:
        return Removable()
    best, promised = checkpoints[-1].manifest.progress.best_step, set(train.keep_steps)
    with_state = [c for c in checkpoints if (c.directory / OPTIMIZER).is_file()]  # also one that a crash left behind
    kept = [c for c in with_state if c.resumable and (c.step in promised or needed.get(c.step) == "optimizer")]
    snapshots = [
        c
        for c in checkpoints[:-1]
        if train.snapshots and is_snapshot(c.step) and not c.resumable and c.step not in {best, *needed}
    ]
    return Removable(tuple(c for c in with_state if c not in kept), tuple(snapshots), tuple(kept))


def _check_weights(checkpoint: Checkpoint) -> None:
    """Check that the weights that the run would be left with are intact.

    Raises:
        GptlabError: They are not.
    """
    path = checkpoint.directory / MODEL
    try:
        intact = compute_digest(path) == checkpoint.manifest.files[MODEL]
    except FileNotFoundError:
        intact = False
    if not intact:
        raise GptlabError(f"{path} is damaged or missing, so nothing was removed from {checkpoint.manifest.run}")
