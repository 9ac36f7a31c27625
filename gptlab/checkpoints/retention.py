"""Retention of checkpoints: which are kept, how others are removed, and the disk space that they need."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from gptlab.checkpoints.manifest import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    float32_bytes,
    list_checkpoints,
)
from gptlab.errors import GptlabError
from gptlab.files import locked_directory, write_durably
from gptlab.size import Size
from gptlab.spec import TrainSpec

STAGING, TRASH = ".saving", ".trash"

NeededSteps = Mapping[int, Literal["weights", "optimizer"]]
"""By step, which part of a checkpoint other runs start from; the optimizer state comes with the weights."""


def apply_retention(
    run_directory: Path,
    keep: int,
    best_step: int | None,
    *,
    snapshots: bool,
    up_to: int | None = None,
    keep_steps: Collection[int] = (),
    needed: Callable[[], NeededSteps] = dict,
) -> None:
    """Remove checkpoints that are no longer needed. Call it after a newer one is committed.

    The newest `keep` resumable checkpoints and those of `keep_steps` stay, and so does what other runs start from. Of
    others, the best checkpoint and, with `snapshots`, those of snapshot steps stay as weights only. Checkpoints after
    step `up_to` are left alone: training resumed before them because they are damaged, and will replace them.

    Args:
        run_directory: The run's directory.
        keep: Number of newest resumable checkpoints to keep.
        best_step: Step of the best checkpoint.
        snapshots: Whether to keep the weights of snapshot steps.
        up_to: The last step to consider.
        keep_steps: Steps whose resumable checkpoints to keep.
        needed: Returns what other runs start from. It is called only if there is something to remove, with a lock on
            the runs directory that `create_run` takes too, so that no run begins with a checkpoint that is removed.
    """
    checkpoints = [c for c in list_checkpoints(run_directory) if up_to is None or c.step <= up_to]
    kept = {c.step for c in [c for c in checkpoints if c.resumable][-keep:]} | set(keep_steps)
    weights = {c.step for c in checkpoints if c.step == best_step or (snapshots and is_snapshot(c.step))}
    removable = [c for c in checkpoints if c.step not in kept and (c.resumable or c.step not in weights)]
    if not removable:
        return
    runs = run_directory.parent
    with locked_directory(runs) if os.access(runs, os.R_OK) else nullcontext():
        others = needed()
        for checkpoint in removable:
            if others.get(checkpoint.step) == "optimizer":
                continue
            if checkpoint.step not in weights | others.keys():
                discard(checkpoint.directory)
            elif checkpoint.resumable:
                remove_optimizer_state(checkpoint)


def is_snapshot(step: int) -> bool:
    """Return whether `step` is 0 or a power of two, like Pythia's first checkpoints (Biderman et al. 2023, §2.1)."""
    return step & (step - 1) == 0


def check_space(run_directory: Path, train: TrainSpec, size: Size) -> None:
    """Check that the disk has room for all checkpoints that the run will keep at once.

    An optimizer other than AdamW is taken to have two moments, too.

    Raises:
        GptlabError: It does not; the message says how much is needed and how much is free.
    """
    weights = float32_bytes(size.parameters, MODEL)
    full = weights + float32_bytes(size.parameters, OPTIMIZER)
    snapshots = train.steps.bit_length() + 1 if train.snapshots else 0
    resumable = train.keep_checkpoints + len({step for step in train.keep_steps if step <= train.steps})
    needed = (resumable + 1) * full + (1 + snapshots) * weights  # + 1 during a save
    used = sum(
        file.bytes for checkpoint in list_checkpoints(run_directory) for file in checkpoint.manifest.files.values()
    )
    free = shutil.disk_usage(run_directory).free
    if free < needed - used:
        raise GptlabError(
            f"the checkpoints need {(needed - used) / 2**30:.2f} GiB more, but {run_directory} has "
            f"{free / 2**30:.2f} GiB free; free some space, or set GPTLAB_RUNS to a directory on another disk"
        )


def remove_incomplete(run_directory: Path) -> None:
    """Remove the checkpoints that a crash left half-written or half-deleted."""
    for name in (STAGING, TRASH):
        path = run_directory / CHECKPOINTS / name
        if path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a crash cannot leave half of it under its name."""
    trash = directory.parent / TRASH
    shutil.rmtree(trash, ignore_errors=True)
    directory.rename(trash)
    shutil.rmtree(trash)


def remove_optimizer_state(checkpoint: Checkpoint) -> None:
    """Leave only the weights of a checkpoint. After a crash in between, calling it again removes what was left."""
    weights = {MODEL: checkpoint.manifest.files[MODEL]}
    manifest = checkpoint.manifest.model_copy(update={"files": weights, "optimizer_values": {}})
    write_durably(checkpoint.directory / MANIFEST, manifest.to_json())  # first: it never lists a file that is gone
    (checkpoint.directory / OPTIMIZER).unlink(missing_ok=True)
