"""Which runs start from which: the children of a run, what they need of it, and the order of a tree of runs.

Records are read leniently, because one that is damaged must stop neither training nor a command: it counts as a run
without a parent.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory
from gptlab.checkpoints.retention import NeededSteps
from gptlab.errors import GptlabError
from gptlab.tracking.records import Branch, InitialWeights, ParentCheckpoint
from gptlab.untrusted import MAX_DOCUMENT_BYTES, open_regular

RECORD, TRASH = "run.json", ".trash"

Key = TypeVar("Key", bound=Hashable)


class _Record(BaseModel):
    """The part of `run.json` that says where a run starts from."""

    run: str
    initial_weights: InitialWeights | None = None
    branch: Branch | None = None


@dataclass(frozen=True)
class Child:
    """A run that starts from a checkpoint of another run."""

    directory: Path
    run: str
    parent: InitialWeights | Branch

    def __str__(self) -> str:
        """The run and the step that it starts from."""
        return f"{self.run} (from step {self.parent.step})"


def children(run_directory: Path, run_id: str) -> list[Child]:
    """Return the runs beside a run that start from its checkpoints, by name. They may be in the trash."""
    return children_among(_read_children(run_directory.parent, run_id), run_directory, run_id)


def all_children(folder: Path) -> list[Child]:
    """Return every run in a folder of runs and in its trash that starts from a checkpoint of another one, by name."""
    return list(_read_children(folder, mentioned=""))


def children_among(candidates: Iterable[Child], run_directory: Path, run_id: str) -> list[Child]:
    """Return those of the candidates that start from checkpoints of a run."""
    return [c for c in candidates if c.parent.run == run_id and _starts_in(c.parent, run_directory, run_id)]


def needed_steps(run_directory: Path, run_id: str, candidates: Sequence[Child] | None = None) -> NeededSteps:
    """Return which steps of a run its children start from, and what they need of them.

    Args:
        run_directory: The run's directory.
        run_id: The run's id.
        candidates: The result of `all_children`, for a caller that asks about many runs; read if it is None.
    """
    found = children(run_directory, run_id) if candidates is None else children_among(candidates, run_directory, run_id)
    weights: NeededSteps = {child.parent.step: "weights" for child in found}
    return {**weights, **{child.parent.step: "optimizer" for child in found if isinstance(child.parent, Branch)}}


def needed_files(parent: ParentCheckpoint) -> tuple[str, ...]:
    """Return the names of the files of a checkpoint that a child reads."""
    return (MODEL, OPTIMIZER) if isinstance(parent, Branch) else (MODEL,)


def places(parent: ParentCheckpoint, runs: Sequence[Path]) -> list[Path]:
    """Return where the weights of a parent may be: where they were, else in the run of that id among `runs`."""
    moved = [checkpoint_directory(directory, parent.step) for directory in runs if directory.name == parent.run]
    return [Path(parent.path), *(directory / MODEL for directory in moved)]


def in_tree_order(parents: Mapping[Key, Key | None]) -> list[tuple[Key, int]]:
    """Return runs so that each follows its parent, with its depth in the tree.

    Args:
        parents: The parent of each run, or None. A parent that is not among the runs counts as None. Siblings keep
            their order.

    Returns:
        Every run once, also if damaged records name each other as parents.
    """
    below: dict[Key | None, list[Key]] = {}
    for run, parent in parents.items():
        below.setdefault(parent, []).append(run)
    roots = [run for run, parent in parents.items() if parent is None or parent not in parents]
    ordered: dict[Key, int] = {}
    for root in [*roots, *parents]:  # runs in a circle are below no root
        pending = [(root, 0)]
        while pending:
            run, depth = pending.pop()
            if run not in ordered:
                ordered[run] = depth
                pending += [(child, depth + 1) for child in reversed(below.get(run, []))]
    return list(ordered.items())


def _read_children(folder: Path, mentioned: str) -> Iterator[Child]:
    """Read the runs in a folder and in its trash whose records mention a run; with an empty name, all."""
    for place in (folder, folder / TRASH):
        try:
            directories = sorted(place.iterdir())
        except OSError:  # there is no trash, or the folder cannot be read
            continue
        for directory in directories:
            record = _read(directory / RECORD, mentioned)
            parent = record and (record.branch or record.initial_weights)
            if record and parent:
                yield Child(directory, record.run, parent)


def _starts_in(parent: ParentCheckpoint, run_directory: Path, run_id: str) -> bool:
    """Whether a child finds its parent in this directory. Of a copy under another name, only by its path."""
    return run_directory.absolute().name == run_id or run_directory.absolute() in Path(parent.path).parents


def _read(path: Path, mentioned: str) -> _Record | None:
    """Read a record that mentions a run. Most mention no other, so that they need not be parsed."""
    with suppress(OSError, GptlabError, ValueError), open_regular(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES)
        if content.count(mentioned.encode()):
            return _Record.model_validate_json(content)
    return None
