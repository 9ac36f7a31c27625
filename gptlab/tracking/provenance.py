"""The code and the environment of an attempt, as its start records them.

The code is a commit and a patch of the uncommitted changes to what determines the numbers: `*.py` and the pins of
packages, not notebooks, documents and outputs. To compare two sources, git writes them as trees to a temporary object
directory; neither the working tree nor the repository is modified.
"""

import hashlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.files import write_durably
from gptlab.tracking.git import GitError, git
from gptlab.tracking.records import Start
from gptlab.tracking.working_tree import (
    CODE,
    DIFF_OPTIONS,
    find_repository,
    submodules,
    temporary_index,
    uncommitted_changes,
)
from gptlab.untrusted import open_regular

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pydantic", "wandb", "pandas")
MAX_PATCH_BYTES = 1 << 23
"""Bound on the uncommitted changes. A person does not write that much between two commits."""
MAX_STORED_PATCH_BYTES = 1 << 28
"""Bound on reading a patch; there was no bound on writing one."""


def environment() -> dict[str, Any]:
    """Return host, platform, and the versions of Python and of the packages."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


@dataclass(frozen=True)
class Source:
    """The project's code. The commit is None if the project is not a git checkout."""

    commit: str | None
    patch: bytes | None
    """Uncommitted changes of code: tracked files and untracked `*.py` only, so that no stray secret is included.

    None if it is unknown: git failed, the patch is missing, or it would be too long. `b""` if there are no changes.
    """
    unknown: str = field(default="", compare=False)
    """Why commit or patch are unknown, in one line; empty if they are known."""

    @property
    def patch_sha256(self) -> str | None:
        """Hash of the patch; None if it is empty or unknown."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None

    def facts(self) -> dict[str, Any]:
        """Return commit, dirty flag and the patch's sha256, as `attempts.jsonl` records them."""
        dirty = None if self.commit is None or self.patch is None else bool(self.patch)
        return {"git_commit": self.commit, "git_dirty": dirty, "diff_sha256": self.patch_sha256}

    def keep_patch(self, directory: Path) -> None:
        """Write `source-HASH8.patch` into a run's directory if there are changes."""
        if self.patch and self.patch_sha256:
            write_durably(patch_path(directory, self.patch_sha256), self.patch)


def patch_path(directory: Path, sha256: str) -> Path:
    """Return the path of a patch in a run's directory."""
    return directory / f"source-{sha256[:8]}.patch"


def working_tree() -> Source:
    """Return the project's code as it is now. If git cannot say, `Source.unknown` has its reason."""
    commit = None
    try:
        repository = find_repository()
        commit = repository.commit
        return Source(commit, uncommitted_changes(repository, MAX_PATCH_BYTES))
    except (GitError, GptlabError) as error:
        return Source(commit, None, str(error))


def recorded_source(directory: Path, starts: list[Start]) -> Source:
    """Return the code of a run's last attempt: the recorded commit, and the patch in the run's directory."""
    if not starts:
        return Source(None, None)
    commit, sha256 = starts[-1].get("git_commit"), starts[-1].get("diff_sha256")
    if sha256 is None:
        return Source(commit, b"" if starts[-1].get("git_dirty") is False else None)
    try:
        with open_regular(patch_path(directory, sha256)) as file:
            patch = file.read(MAX_STORED_PATCH_BYTES)
    except (FileNotFoundError, GptlabError):
        return Source(commit, None)
    return Source(commit, patch if hashlib.sha256(patch).hexdigest() == sha256 else None)


@dataclass(frozen=True)
class Changes:
    """The differences between two sources."""

    files: dict[str, str]
    """Added and removed lines of each file, such as `+4 −2`."""
    patch: bytes


def compare_sources(old: Source, new: Source) -> Changes | None:
    """Compare two sources with git; None if a commit is not in this repository or a patch is missing."""
    if old == new and old.commit and old.patch is not None:
        return Changes({}, b"")
    try:
        repository = find_repository()
        with temporary_index(repository) as index:
            trees = [_tree(source, repository.top, index) for source in (old, new)]
            paths = [*CODE, *submodules(index)]
            counts = git("diff", "--numstat", "--no-renames", "-z", *trees, "--", *paths, environment=index)
            patch = git("diff", *DIFF_OPTIONS, *trees, "--", *paths, environment=index)
    except (GitError, GptlabError):
        return None
    rows = [os.fsdecode(row).split("\t", 2) for row in counts.split(b"\0") if row]
    return Changes({name: "binary" if added == "-" else f"+{added} −{removed}" for added, removed, name in rows}, patch)


def _tree(source: Source, top: str, index: Mapping[str, str]) -> str:
    """Write the source as a git tree to the environment's object directory and return its hash.

    Raises:
        GitError: Commit or patch are unknown here.
    """
    if source.commit is None or source.patch is None:
        raise GitError("the code is unknown")
    git("read-tree", source.commit, environment=index)
    if source.patch:
        git("apply", "--cached", "--whitespace=nowarn", "-", cwd=top, stdin=source.patch, environment=index)
    return git("write-tree", environment=index).decode().strip()


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
