"""`gptlab rm` and `gptlab gc`: which runs need a run that is removed, and what the trash holds."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptlab import project
from gptlab.commands.run_selection import find_runs
from gptlab.errors import GptlabError
from gptlab.terminal.text import plural, printable
from gptlab.tracking.lineage import children
from gptlab.tracking.run import TRASH, Run, load_run
from gptlab.tracking.space import disk_usage


@dataclass(frozen=True)
class TrashEntry:
    """An entry of the trash: a run's directory, or anything else that was put there."""

    path: Path
    bytes: int
    needed_by: tuple[str, ...] = ()
    """The runs that start from the run in the entry, unless the runs directory holds that run as well."""

    def remove(self) -> None:
        """Delete the entry; for a symbolic link, only the link. Another process may be deleting it as well.

        Raises:
            OSError: The entry, or something in it, cannot be deleted.
        """
        while os.path.lexists(self.path):
            with suppress(FileNotFoundError):  # the other process was faster; what is left is tried again
                if self.path.is_dir() and not self.path.is_symlink():
                    shutil.rmtree(self.path)
                else:
                    self.path.unlink()

    def line(self) -> str:
        """Return size and name as one line."""
        needed = f"  (needed by {', '.join(self.needed_by)})" if self.needed_by else ""
        return printable(f"{self.bytes / 2**20:>10,.1f} MiB  {self.path.name}{needed}")


def select_runs(references: Sequence[str]) -> list[Run]:
    """Return the runs that arguments select (see `find_runs`).

    Raises:
        BadInputError: An argument selects no run, or is a prefix of several.
        GptlabError: A run cannot be loaded, or is being trained.
    """
    selected = find_runs(references)
    for run in selected:
        run.check_removable()
    return selected


def dependents(removed: Sequence[Run]) -> list[str]:
    """Return one line for each run that others start from, about what becomes of them without it.

    Args:
        removed: The runs to remove. Those that start from each other do not count.
    """
    gone = {run.directory.resolve() for run in removed}
    lines = []
    for run in removed:
        below = [child for child in children(run.directory, run.id) if child.directory.parent == run.directory.parent]
        if left := [child for child in below if child.directory.resolve() not in gone]:
            lines.append(
                f"{', '.join(map(str, left))} started from {run.id}: without it they cannot be computed again, nor "
                "resumed before their first checkpoint"
            )
    return lines


def entry_of(run: Run) -> TrashEntry:
    """Return a run as an entry to list before it is moved."""
    return TrashEntry(run.directory, disk_usage(run.directory))


def list_trash() -> list[TrashEntry]:
    """Return the entries of the trash by name; none if the trash itself is a symbolic link."""
    trash = project.runs_directory() / TRASH
    if trash.is_symlink() or not trash.is_dir():
        return []
    return [TrashEntry(path, disk_usage(path), _needed_by(path)) for path in sorted(trash.iterdir())]


def _needed_by(path: Path) -> tuple[str, ...]:
    """The runs that start from the run in a folder of the trash and find it nowhere else."""
    runs = project.runs_directory()
    try:
        run = load_run(path)
    except GptlabError:  # not a run, or a damaged one
        return ()
    original = runs / run.id
    return (
        ()
        if original.exists()
        else tuple(str(child) for child in children(original, run.id) if child.directory.parent == runs)
    )


def remove(entries: list[TrashEntry]) -> tuple[list[str], list[str]]:
    """Delete entries. Returns the names of those that are gone, and one message for each that cannot be deleted."""
    removed, problems = [], []
    for entry in entries:
        try:
            entry.remove()
            removed.append(entry.path.name)
        except OSError as error:
            problems.append(f"{entry.path} cannot be deleted: {error.strerror}")
    return removed, problems


def question(entries: list[TrashEntry]) -> str:
    """Return the question to ask before the entries are deleted."""
    total = sum(entry.bytes for entry in entries)
    return f"permanently delete {plural(len(entries), 'entry', 'entries')}, {total / 2**20:,.1f} MiB?"
