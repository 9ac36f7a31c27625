"""What `gptlab rm` and `--fresh` moved aside, and getting rid of it for good."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from gptlab import project
from gptlab.tracking.run import TRASH


@dataclass(frozen=True)
class Discarded:
    """One entry of the trash: a run's directory, or whatever else somebody put there."""

    path: Path
    bytes: int

    def remove(self) -> None:
        """Remove it for good; a link itself, never what it leads to."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink()


def discarded() -> list[Discarded]:
    """All that lies in the trash, by name; nothing where the trash itself is a link."""
    trash = project.runs_directory() / TRASH
    if trash.is_symlink() or not trash.is_dir():
        return []
    return [Discarded(path, _size(path)) for path in sorted(trash.iterdir())]


def _size(path: Path) -> int:
    """Bytes of the files in it, links not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
