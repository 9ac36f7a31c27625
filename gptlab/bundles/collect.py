"""Which files of runs belong into a bundle.

Left out are W&B's files, logs, locks, profiles and the place of the text: they say much about the machine and nothing
about the numbers.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptlab.bundles.anonymous import without_paths
from gptlab.bundles.contents import EVALUATION, parent_files, patch_name, run_name, text_name
from gptlab.checkpoints.manifest import CHECKPOINTS, MANIFEST, MIB, Checkpoint, list_checkpoints
from gptlab.data import vocabularies
from gptlab.errors import GptlabError
from gptlab.tracking.history import ATTEMPTS, History
from gptlab.tracking.lineage import places
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.provenance import patch_path
from gptlab.tracking.records import Branch, InitialWeights
from gptlab.tracking.run import EVALUATIONS, RECORD, SAMPLES, TOKENIZER, Run, run_directories
from gptlab.tracking.verifications import VERIFICATIONS
from gptlab.training.run_text import stored_text
from gptlab.untrusted import open_regular

Choice = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Source:
    """A file to pack: where it is, or its content."""

    name: str
    """Its name in the bundle."""
    origin: Path | bytes


@dataclass(frozen=True)
class Digest:
    """Size and sha256 of a file."""

    bytes: int
    sha256: str


def collect(runs: Sequence[Run], choice: Choice, *, with_text: bool) -> list[Source]:
    """Return the files to pack, by name.

    Args:
        runs: The runs.
        choice: Which of their checkpoints: the newest and the newest resumable one before it, from which the last
            stretch can be replayed; all; or none.
        with_text: Whether to pack the runs' texts.

    Raises:
        BadInputError: A text is gone or has changed.
    """
    needed = {(run.record.parent.run, run.record.parent.step) for run in runs if run.record.parent}
    found: dict[str, Source] = {}
    for run in runs:
        steps = {step for parent, step in needed if parent == run.id}
        found |= {source.name: source for source in _files_of(run, choice, steps)}
        if with_text:
            name = text_name(run.record.text.sha256)
            found[name] = Source(name, stored_text(run).path)
    for run in runs:
        if run.record.parent:
            found = {source.name: source for source in _parent_files(run.record.parent)} | found
    return [found[name] for name in sorted(found)]


def digest(origin: Path | bytes) -> Digest:
    """Return size and sha256 of a file, which is read, or of a content.

    Raises:
        FileNotFoundError: The file does not exist.
        GptlabError: It cannot be read.
    """
    if isinstance(origin, bytes):
        return Digest(len(origin), hashlib.sha256(origin).hexdigest())
    sha256, size = hashlib.sha256(), 0
    with open_regular(origin) as file:
        while block := file.read(MIB):
            sha256.update(block)
            size += len(block)
    return Digest(size, sha256.hexdigest())


def _files_of(run: Run, choice: Choice, needed: set[int]) -> Iterator[Source]:
    """Yield the files of a run. Those of steps in `needed` are packed because other runs start from them."""
    yield Source(run_name(run.id, RECORD), without_paths(run.record).to_json().encode())
    names = [ATTEMPTS, METRICS, SAMPLES, VERIFICATIONS]
    if run.record.spec.data.tokenizer not in vocabularies.NAMED:
        names.append(TOKENIZER)
    for name in names:
        if os.path.lexists(run.directory / name):
            yield Source(run_name(run.id, name), run.directory / name)
    for start in History(run.directory, run.record).starts:
        if sha256 := start.get("diff_sha256"):
            yield Source(patch_name(run.id, sha256), patch_path(run.directory, sha256))
    for path in (run.directory / EVALUATIONS).glob("*.safetensors"):
        if re.fullmatch(EVALUATION, path.name):
            yield Source(run_name(run.id, EVALUATIONS, path.name), path)
    for checkpoint in _chosen(list_checkpoints(run.directory), choice, needed):
        for name in (MANIFEST, *checkpoint.manifest.files):
            path = checkpoint.directory / name
            yield Source(run_name(run.id, CHECKPOINTS, checkpoint.directory.name, name), path)


def _chosen(checkpoints: list[Checkpoint], choice: Choice, needed: set[int]) -> list[Checkpoint]:
    resumable = [checkpoint for checkpoint in checkpoints[:-1] if checkpoint.resumable]
    chosen = {"all": checkpoints, "last": [*resumable[-1:], *checkpoints[-1:]], "none": []}[choice]
    return [checkpoint for checkpoint in checkpoints if checkpoint in chosen or checkpoint.step in needed]


def _parent_files(parent: Branch | InitialWeights) -> list[Source]:
    """Return the files of the parent's checkpoint that a run needs; none if one of them is gone or has changed."""
    folders = [path.parent for path in places(parent, run_directories())]
    for folder in folders:
        paths = {name: folder / Path(name).name for name in parent_files(parent)}
        if all(_has(paths[name], sha256) for name, sha256 in parent_files(parent).items()):
            return [Source(name, path) for name, path in paths.items()]
    return []


def _has(path: Path, sha256: str) -> bool:
    try:
        return digest(path).sha256 == sha256
    except (FileNotFoundError, GptlabError):
        return False
