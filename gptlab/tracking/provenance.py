"""Which code, on which machine, made a number: what an attempt's first row records, and the patch beside it."""

import hashlib
import importlib.metadata
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.tracking.files import write_durably

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pydantic", "wandb", "pandas")


def environment() -> dict[str, Any]:
    """Host, interpreter and package versions."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def source(directory: Path) -> dict[str, Any]:
    """The project's commit, and whether the working tree differs; the difference is kept in the run's directory.

    The patch holds tracked files and untracked `*.py` only, so that no stray secret comes along. All values are None
    where the project is not a git checkout.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": None, "git_dirty": None, "diff_sha256": None}
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z", "--", "*.py") or b""
    additions = [_git_diff_new(name) for name in sorted(untracked.decode().split("\0")) if name]
    patch = (_git("diff", "--binary", "HEAD", "--", ".") or b"") + b"".join(additions)
    digest = hashlib.sha256(patch).hexdigest() if patch else None
    if digest:
        write_durably(directory / f"source-{digest[:8]}.patch", patch)
    return {"git_commit": commit.decode().strip(), "git_dirty": digest is not None, "diff_sha256": digest}


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


def _git_diff_new(name: str) -> bytes:
    command = ["git", "diff", "--no-index", "--binary", "--", "/dev/null", name]  # exits with 1: they differ
    return subprocess.run(command, cwd=project.root(), capture_output=True, check=False, timeout=30).stdout
