"""Saving and loading checkpoints, so that a crash at any moment leaves the older ones as they were.

A checkpoint is written into a temporary directory beside its place: each file flushed to the disk, then the manifest,
then the directory; a rename puts it in place. safetensors alone has neither checksums nor an fsync; the manifest and
this order add them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.gpt import GPT
from gptlab.spec import ModelSpec, canonical_json
from gptlab.tracking.checkpoints import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    FileDigest,
    Manifest,
    digest_of,
    directory_of,
    list_checkpoints,
)
from gptlab.tracking.files import fsync_directory, fsync_file, write_durably
from gptlab.training import optimizer as adamw

STAGING, TRASH = ".saving", ".trash"


def save(
    run_directory: Path, files: dict[str, dict[str, Tensor]], header: dict[str, Any], manifest: dict[str, Any]
) -> Checkpoint:
    """Commit a checkpoint.

    Args:
        run_directory: The run's.
        files: Tensors by name, per file of the checkpoint.
        header: Facts of the identity and the step, the same whenever the state is the same; kept in each file.
        manifest: The fields of `Manifest` but for `files`.
    """
    target = directory_of(run_directory, manifest["step"])
    staging = target.parent / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    metadata = {"gptlab": canonical_json(header)}  # one key: several come out in random order
    digests = {name: _write_tensors(staging / name, tensors, metadata) for name, tensors in files.items()}
    committed = Manifest(files=digests, **manifest)
    write_durably(staging / MANIFEST, committed.model_dump_json(indent=2) + "\n")  # flushes the directory too
    if target.exists():
        _discard(target)
    staging.rename(target)
    fsync_directory(target.parent)
    return Checkpoint(target, committed)


def newest_valid(run_directory: Path, notice: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint to go on from whose bytes are whole; a damaged one is passed over with a notice.

    Raises:
        GptlabError: There are checkpoints, and none is whole.
    """
    damaged = None
    for checkpoint in reversed(list_checkpoints(run_directory)):
        if not checkpoint.resumable:
            continue
        try:
            checkpoint.verify()
        except GptlabError as error:
            notice(f"{error}; going on from the checkpoint before it")
            damaged = error
            continue
        return checkpoint
    if damaged:
        raise GptlabError(f"no checkpoint is whole: {damaged}; start again with --fresh")
    return None


def load_training_state(checkpoint: Checkpoint, model: GPT, optimizer: torch.optim.AdamW) -> None:
    """Fill a model and its optimizer with the checkpoint's tensors.

    Raises:
        GptlabError: The tensors do not fit the model.
    """
    load_weights(checkpoint.directory / MODEL, model)
    try:
        adamw.load_state_tensors(model, optimizer, _read_tensors(checkpoint.directory / OPTIMIZER))
    except (KeyError, ValueError) as error:
        raise GptlabError(f"{checkpoint.directory / OPTIMIZER} does not fit the model: {error}") from error


def load_model(checkpoint: Checkpoint, spec: ModelSpec) -> GPT:
    """The model of a checkpoint, on the CPU and in evaluation mode.

    Raises:
        GptlabError: A file is damaged or does not fit the spec.
    """
    checkpoint.verify()
    model = gpt.empty(spec)
    load_weights(checkpoint.directory / MODEL, model)
    return model.eval()


def load_weights(path: Path, model: GPT) -> None:
    """Fill a model with a file of weights.

    Raises:
        GptlabError: The file is damaged or does not fit the model.
    """
    try:
        model.load_state_dict(_read_tensors(path))
    except RuntimeError as error:
        raise GptlabError(f"{path} does not fit the model: {error}") from error


def check_weights_fit(path: Path, spec: ModelSpec) -> None:
    """Compare names and shapes, without reading the tensors.

    Raises:
        BadInputError: The weights are another model's.
    """
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in GPT(spec).state_dict().items()}
    with safe_open(path, "pt") as file:
        names = file.keys()
        given = {name: file.get_slice(name).get_shape() for name in names}
    if different := sorted(name for name in wanted | given if wanted.get(name) != given.get(name)):
        name = different[0]
        raise BadInputError(
            f"the weights in {path} are another model's: {name} is {given.get(name, 'missing')} there and "
            f"{wanted.get(name, 'not wanted')} in this experiment"
        )


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


def clear_remains(run_directory: Path) -> None:
    """Remove what a crash left half-written or half-removed."""
    for name in (STAGING, TRASH):
        shutil.rmtree(run_directory / CHECKPOINTS / name, ignore_errors=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> FileDigest:
    safetensors.torch.save_file({name: t.detach().cpu() for name, t in tensors.items()}, path, metadata)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library makes files that only their owner can read
    fsync_file(path)
    return digest_of(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(
            path.read_bytes()
        )  # not mapped: a file that shrinks under a map kills the process
    except SafetensorError as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error


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
