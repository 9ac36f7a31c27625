"""`gptlab rm` and `gptlab gc`: which runs need a run that is removed, and what the trash holds."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.terminal.text import printable
from gptlab.tracking.lineage import children
from gptlab.tracking.run import TRASH, Run, load_run


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


def dependents(run: Run) -> str | None:
    """Return which runs start from a run and what becomes of them without it; None if there are none."""
    below = [child for child in children(run.directory, run.id) if child.directory.parent == run.directory.parent]
    if not below:
        return None
    return (
        f"{', '.join(map(str, below))} started from {run.id}: without it they cannot be computed again, nor resumed "
        "before their first checkpoint"
    )


def list_trash() -> list[TrashEntry]:
    """Return the entries of the trash by name; none if the trash itself is a symbolic link."""
    trash = project.runs_directory() / TRASH
    if trash.is_symlink() or not trash.is_dir():
        return []
    return [TrashEntry(path, _size(path), _needed_by(path)) for path in sorted(trash.iterdir())]


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
    return f"permanently delete {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {total / 2**20:,.1f} MiB?"


def _size(path: Path) -> int:
    """Bytes of the files in a directory, as far as it can be read; symbolic links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return _file_size(path)
    return sum(_file_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # unreadable, or removed in the meantime
        return 0
