"""`bundle.json`, the first file of a bundle: what the bundle holds, and what a replay of its runs needs.

Everything that it says about a run follows from the run's own files, and a reader compares both.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gptlab.checkpoints.manifest import MANIFEST, MODEL, OPTIMIZER, checkpoint_directory
from gptlab.data import vocabularies
from gptlab.digests import check_digest, with_digest
from gptlab.part_names import is_part
from gptlab.spec import flatten
from gptlab.tracking.lineage import needed_files
from gptlab.tracking.provenance import patch_path
from gptlab.tracking.records import Branch, Commit, InitialWeights, RunRecord, Sha256, Start
from gptlab.tracking.run import RECORD, TOKENIZER
from gptlab.untrusted import Count

CONTENTS = "bundle.json"
MAX_CONTENTS_BYTES = 1 << 22
MAX_FILES = 10_000
MAX_BYTES = 1 << 40
"""Bound on a bundle, besides the free space: a checkpoint of the reference model has 2 GiB."""

RUN_ID = r"[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{8}-s[0-9]{1,19}"
CHECKPOINT_FILE = r"checkpoints/step-[0-9]{8,9}/(?:manifest\.json|(?:model|optimizer)\.safetensors)"
EVALUATION = r"(?:explained-)?step-[0-9]{8,9}-[0-9a-f]{8}\.safetensors"
RECORDS = r"(?:run|tokenizer)\.json|(?:attempts|metrics|samples|verifications)\.jsonl|source-[0-9a-f]{8}\.patch"
FILE = rf"^(?:runs/{RUN_ID}/(?:{RECORDS}|evaluations/{EVALUATION}|{CHECKPOINT_FILE})|texts/[0-9a-f]{{64}}\.txt)$"
"""The name of a file in a bundle. All are short ASCII without `..` or a leading slash."""

OWN_CODE = "gptlab/"
"""Files of gptlab itself, which the commit names; other files of a fingerprint are the project's parts."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Document):
    """A file of the bundle."""

    name: Annotated[str, Field(pattern=FILE)]
    bytes: Count
    sha256: Sha256


class Needed(_Document):
    """A file that a replay needs and that the bundle may lack."""

    name: str
    """A name for people: the last part of a path, or a built-in one."""
    sha256: Sha256
    inside: bool
    """Whether the bundle holds it."""


class NeededText(Needed):
    """The text that a run was trained on."""

    bytes: Count


class Attempt(_Document):
    """The code of an attempt."""

    git_commit: Commit | None
    """None if it was unknown."""
    diff_sha256: Sha256 | None
    """Of the patch with uncommitted changes, which is in the run's folder; None if there were none."""


class Parent(_Document):
    """The checkpoint of another run that a run starts from."""

    run: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    step: Count
    by: Literal["branch", "from"]
    inside: bool
    """Whether the bundle holds the files of that checkpoint that the run needs."""


class BundledRun(_Document):
    """What a replay of a run needs."""

    run: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    checkpoints: tuple[Count, ...]
    """Steps of the checkpoints inside."""
    attempts: tuple[Attempt, ...]
    text: NeededText
    tokenizer: Needed
    parts: dict[str, str]
    """The sha256 of each file of the project, other than gptlab's own, with code of the spec's parts."""
    parent: Parent | None
    imported_weights: Needed | None
    """The weights of a directory of `transformers` that the run starts from; never inside."""


class Contents(_Document):
    """`bundle.json`."""

    format: Literal["gptlab bundle"] = "gptlab bundle"
    version: Literal[1] = 1
    gptlab: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+]{1,64}$")]
    """The version of gptlab that wrote the bundle."""
    runs: Annotated[tuple[BundledRun, ...], Field(min_length=1)]
    files: Annotated[tuple[File, ...], Field(max_length=MAX_FILES)]
    """The other files, in the order in which they follow."""

    def to_json(self) -> bytes:
        """Return the content of the file. Equal contents are equal bytes."""
        document = with_digest(self.model_dump(mode="json"))
        return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read the file.

        Raises:
            ValueError: It is damaged, or not as gptlab writes it, for example because an object has a key twice.
        """
        try:
            document = check_digest(json.loads(content))
        except (ValueError, RecursionError):
            raise ValueError("it is damaged: its digest does not match its content") from None
        found = cls.model_validate_json(json.dumps(document))
        if found.to_json() != content:
            raise ValueError("it is damaged: it is not formatted as gptlab writes it")
        return found

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of the files by name."""
        return {file.name: file.sha256 for file in self.files}

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for before, after in pairwise(file.name for file in self.files):
            if before >= after:
                raise ValueError(f"{after} is listed twice or out of order")
        for one, other in pairwise(found.run for found in self.runs):
            if one >= other:
                raise ValueError(f"run {other} is listed twice or out of order")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        """Check that each file belongs to a run, and that each run has a record."""
        names = {file.name for file in self.files}
        for run in self.runs:
            if run_name(run.run, RECORD) not in names:
                raise ValueError(f"run {run.run} has no {RECORD}")
        folders = {run_name(run.run) for run in self.runs}
        others = {text_name(run.text.sha256) for run in self.runs}
        for parent in (run.parent for run in self.runs if run.parent):
            step = checkpoint_directory(Path(run_name(parent.run)), parent.step)
            others |= {str(step / MODEL), str(step / OPTIMIZER)}
        for name in sorted(names - others):
            if "/".join(name.split("/")[:2]) not in folders:
                raise ValueError(f"{name} belongs to none of its runs")
        return self


def run_name(run_id: str, *parts: str) -> str:
    """Return the name of a file of a run in the bundle."""
    return str(Path("runs", run_id, *parts))


def text_name(sha256: str) -> str:
    """Return the name of a text in the bundle."""
    return f"texts/{sha256}.txt"


def parent_files(parent: Branch | InitialWeights) -> dict[str, str]:
    """Return the sha256 of the files of its parent's checkpoint that a run needs, by their names in the bundle."""
    folder = checkpoint_directory(Path(run_name(parent.run)), parent.step)
    hashes = (parent.sha256, parent.optimizer_sha256) if isinstance(parent, Branch) else (parent.sha256,)
    return {str(folder / name): sha256 for name, sha256 in zip(needed_files(parent), hashes, strict=True)}


def describe(record: RunRecord, starts: Sequence[Start], hashes: Mapping[str, str]) -> BundledRun:
    """Return what `bundle.json` says about a run.

    Args:
        record: The run's record, without paths of the machine (`gptlab.bundles.anonymous`).
        starts: The starts of its attempts.
        hashes: The sha256 of the bundle's files by name.
    """
    folder = run_name(record.run) + "/"
    return BundledRun(
        run=record.run,
        checkpoints=tuple(sorted(_steps(folder, hashes))),
        attempts=tuple(
            Attempt(git_commit=start.get("git_commit"), diff_sha256=start.get("diff_sha256")) for start in starts
        ),
        text=NeededText(
            name=record.text.source,
            sha256=record.text.sha256,
            inside=text_name(record.text.sha256) in hashes,
            bytes=record.text.bytes,
        ),
        tokenizer=Needed(
            name=record.spec.data.tokenizer,
            sha256=record.tokenizer_sha256,
            inside=record.spec.data.tokenizer in vocabularies.NAMED or folder + TOKENIZER in hashes,
        ),
        parts=_parts(record),
        parent=_parent(record, hashes),
        imported_weights=Needed(
            name=record.imported_weights.path.removeprefix("/"), sha256=record.imported_weights.sha256, inside=False
        )
        if record.imported_weights
        else None,
    )


def patch_name(run_id: str, sha256: str) -> str:
    """Return the name of a patch in the bundle."""
    return run_name(run_id, patch_path(Path(), sha256).name)


def _parent(record: RunRecord, hashes: Mapping[str, str]) -> Parent | None:
    facts: dict[str, Any] | None = record.parent_facts().get("parent")
    if facts is None or record.parent is None:
        return None
    return Parent(**facts, inside=parent_files(record.parent).items() <= hashes.items())


def _parts(record: RunRecord) -> dict[str, str]:
    """The files of a fingerprint that are not gptlab's own; of a record without one, those that the spec names."""
    if record.fingerprint:
        return {name: sha for name, sha in record.fingerprint.files.items() if not name.startswith(OWN_CODE)}
    fields = dict(flatten(record.spec.model_dump(mode="json"))).values()
    parts = [value.partition(":")[0] for value in fields if isinstance(value, str) and is_part(value)]
    return {f"{part.replace('.', '/')}.py": "unknown" for part in sorted(parts)}


def _steps(folder: str, names: Iterable[str]) -> list[int]:
    found = [re.fullmatch(rf"{re.escape(folder)}checkpoints/step-([0-9]+)/{re.escape(MANIFEST)}", n) for n in names]
    return [int(match[1]) for match in found if match]
