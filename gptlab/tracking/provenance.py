"""Which code, on which machine, made a number: what an attempt's first row records, and the patch beside it."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.tracking.files import write_durably

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pydantic", "wandb", "pandas")
DIFF_OPTIONS = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""A patch that git can apply, whatever the user's configuration makes of `git diff`."""


def environment() -> dict[str, Any]:
    """Host, interpreter and package versions."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


@dataclass(frozen=True)
class WorkingTree:
    """The project's code as it stands; without a commit where the project is not a git checkout."""

    commit: str | None
    patch: bytes | None
    """What differs from the commit: tracked files and untracked `*.py` only, so that no stray secret comes along.

    None where git could not say: unknown is not clean.
    """

    @property
    def patch_sha256(self) -> str | None:
        """None where nothing differs."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None

    def facts(self) -> dict[str, Any]:
        """As `attempts.jsonl` records it."""
        dirty = None if self.commit is None or self.patch is None else bool(self.patch)
        return {"git_commit": self.commit, "git_dirty": dirty, "diff_sha256": self.patch_sha256}

    def keep_patch(self, directory: Path) -> None:
        """Write `source-HASH8.patch` where something differs."""
        if self.patch and self.patch_sha256:
            write_durably(directory / f"source-{self.patch_sha256[:8]}.patch", self.patch)


def working_tree() -> WorkingTree:
    """Look at the project's code now."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return WorkingTree(None, b"")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", "*.py")
    changes = _git("diff", *DIFF_OPTIONS, "HEAD", "--", ".")
    top = _git("rev-parse", "--show-toplevel")
    if untracked is None or changes is None or top is None:
        return WorkingTree(commit.decode().strip(), None)
    additions = [
        _git_diff_new(name, os.fsdecode(top.rstrip(b"\n")))
        for name in sorted(os.fsdecode(untracked).split("\0"))
        if name
    ]
    return WorkingTree(commit.decode().strip(), changes + b"".join(additions))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=project.root(), capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _git_diff_new(name: str, top: str) -> bytes:
    command = ["git", "diff", "--no-index", *DIFF_OPTIONS, "--", "/dev/null", name]  # exits with 1: they differ
    return subprocess.run(command, cwd=top, capture_output=True, check=False, timeout=30).stdout
