"""Committing checkpoints, so that a crash at any moment leaves the older ones as they were.

A checkpoint is written into a temporary directory beside its place: each file flushed to the disk and read back, then
the manifest, then the directory; a rename puts it in place. The manifest has the checksums of what was in memory.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.spec import Experiment, canonical_json
from gptlab.tracking.checkpoints import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    Manifest,
    digest_of,
    directory_of,
    list_checkpoints,
)
from gptlab.tracking.files import fsync_directory, fsync_file, write_durably
from gptlab.training.tensors import Tensors, write_tensors

STAGING, TRASH = ".saving", ".trash"


def save(
    run_directory: Path,
    files: dict[str, Tensors],
    header: dict[str, Any],
    manifest: dict[str, Any],
    when_read: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Commit a checkpoint.

    Args:
        run_directory: The run's.
        files: Tensors by name, per file of the checkpoint; on the CPU.
        header: Facts of the identity and the step, the same whenever the state is the same; kept in each file.
        manifest: The fields of `Manifest` but for `files`.
        when_read: Called as soon as the tensors may change.

    Raises:
        GptlabError: A file cannot be written, or does not read back as it was in memory.
    """
    target = directory_of(run_directory, manifest["step"])
    staging = target.parent / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        metadata = {"gptlab": canonical_json(header)}  # one key: several come out in random order
        digests = {name: write_tensors(staging / name, tensors, metadata) for name, tensors in files.items()}
        when_read()
        for name, digest in digests.items():
            fsync_file(staging / name)
            if digest_of(staging / name) != digest:
                raise GptlabError(f"{staging / name} does not read back as it was written; is the disk sound?")
        committed = Manifest(files=digests, **manifest)
        write_durably(staging / MANIFEST, committed.model_dump_json(indent=2) + "\n")  # flushes the directory too
        if target.exists():
            _discard(target)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(target.parent)
    return Checkpoint(target, committed)


def retain(run_directory: Path, keep: int, best_step: int | None, *, snapshots: bool) -> None:
    """Remove what is no longer wanted, after a newer checkpoint is committed.

    The newest `keep` that training can go on from stay; of the best one and of snapshots the weights stay.
    """
    checkpoints = list_checkpoints(run_directory)
    newest = {c.step for c in [c for c in checkpoints if c.resumable][-keep:]}
    for checkpoint in checkpoints:
        if checkpoint.step in newest:
            continue
        if checkpoint.step == best_step or (snapshots and is_snapshot(checkpoint.step)):
            if checkpoint.resumable:
                _strip_optimizer(checkpoint)
        else:
            _discard(checkpoint.directory)


def is_snapshot(step: int) -> bool:
    """Whether `step` is 0 or a power of two (the early steps that Pythia keeps; Biderman et al. 2023, section 2.1)."""
    return step & (step - 1) == 0


def check_space(run_directory: Path, spec: Experiment) -> None:
    """See before the first step that the disk has room for the checkpoints to come.

    Raises:
        GptlabError: It has not; the message says how much is missing.
    """
    weights = 4 * spec.model.parameters
    full = 3 * weights  # with both of AdamW's moments
    snapshots = spec.train.steps.bit_length() + 1 if spec.train.snapshots else 0
    wanted = (spec.train.keep_checkpoints + 1) * full + (1 + snapshots) * weights  # one more while it is written
    held = sum(
        file.bytes for checkpoint in list_checkpoints(run_directory) for file in checkpoint.manifest.files.values()
    )
    free = shutil.disk_usage(run_directory).free
    if free < wanted - held:
        raise GptlabError(
            f"the checkpoints need {(wanted - held) / 2**30:.2f} GiB more, and {run_directory} has "
            f"{free / 2**30:.2f} GiB free; make room, or choose another place with GPTLAB_RUNS"
        )


def clear_remains(run_directory: Path) -> None:
    """Remove what a crash left half-written or half-removed."""
    for name in (STAGING, TRASH):
        path = run_directory / CHECKPOINTS / name
        if path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def _strip_optimizer(checkpoint: Checkpoint) -> None:
    weights = {MODEL: checkpoint.manifest.files[MODEL]}
    manifest = checkpoint.manifest.model_copy(update={"files": weights})
    write_durably(checkpoint.directory / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    (checkpoint.directory / OPTIMIZER).unlink()


def _discard(directory: Path) -> None:
    """Rename first, so that a crash while deleting leaves no half checkpoint."""
    trash = directory.parent / TRASH
    shutil.rmtree(trash, ignore_errors=True)
    directory.rename(trash)
    shutil.rmtree(trash)
