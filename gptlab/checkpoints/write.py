"""Write checkpoints so that a crash at any moment leaves the older ones intact.

A checkpoint is written to a temporary directory. Each file is flushed to the disk and compared with the checksum of
what was in memory, then the manifest is written, the directory is flushed, and it is renamed to its final name.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptlab.checkpoints.manifest import (
    MANIFEST,
    Checkpoint,
    FileDigest,
    Manifest,
    checkpoint_directory,
    compute_digest,
)
from gptlab.checkpoints.retention import STAGING, discard
from gptlab.checkpoints.tensors import Tensors, write_tensors
from gptlab.digests import canonical_json
from gptlab.errors import GptlabError
from gptlab.files import fsync_directory, fsync_file, write_durably

Write = Callable[[Path, Tensors, dict[str, str]], FileDigest]
"""See `write_tensors`."""


def commit_checkpoint(
    run_directory: Path,
    files: dict[str, Tensors],
    header: dict[str, Any],
    manifest: dict[str, Any],
    on_read: Callable[[], None] = lambda: None,
    write: Write | None = None,
) -> Checkpoint:
    """Write a checkpoint and return it when it is on the disk.

    Args:
        run_directory: The run's directory.
        files: For each file of the checkpoint its tensors by name, on the CPU.
        header: Facts about the identity and the step for the header of each file. Equal states have equal headers.
        manifest: The fields of `Manifest` except `files`.
        on_read: Called when all tensors are written and hashed, so that they may change.
        write: Writes the tensors of a file; by default `write_tensors`.

    Raises:
        GptlabError: A file cannot be written, or does not read back as it was in memory.
    """
    target = checkpoint_directory(run_directory, manifest["step"])
    staging = target.parent / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        metadata = {"gptlab": canonical_json(header)}  # a single key: safetensors writes several in random order
        digests = {name: (write or write_tensors)(staging / name, tensors, metadata) for name, tensors in files.items()}
        on_read()
        for name, digest in digests.items():
            fsync_file(staging / name)
            if compute_digest(staging / name) != digest:
                raise GptlabError(f"{staging / name} does not read back as it was written; check the disk")
        committed = Manifest(files=digests, **manifest)
        write_durably(staging / MANIFEST, committed.to_json())  # flushes the directory too
        if target.exists():
            discard(target)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(target.parent)
    return Checkpoint(target, committed)
