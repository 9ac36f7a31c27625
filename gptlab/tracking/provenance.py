"""The code and the environment of an attempt, as its start records them.

The code is a commit and a patch of the uncommitted changes. To compare two such sources, git writes them as trees to a
temporary object directory; neither the working tree nor the repository is modified.
"""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.files import write_durably
from gptlab.tracking.records import Start
from gptlab.untrusted import open_regular

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pydantic", "wandb", "pandas")
DIFF_OPTIONS = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""Options for a patch that git can apply, whatever the user's configuration of `git diff`."""
MAX_PATCH_BYTES = 1 << 28


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
    """Uncommitted changes: tracked files and untracked `*.py` only, so that no stray secret is included.

    None if it is unknown, because git failed or the patch is missing. `b""` if there are no changes.
    """

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
    """Return the project's code as it is now."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Source(None, b"")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", "*.py")
    changes = _git("diff", *DIFF_OPTIONS, "HEAD", "--", ".")
    top = _top()
    if untracked is None or changes is None or top is None:
        return Source(commit.decode().strip(), None)
    patches = [changes, *(_git_diff_new(name, top) for name in sorted(os.fsdecode(untracked).split("\0")) if name)]
    known = [patch for patch in patches if patch is not None]
    return Source(commit.decode().strip(), b"".join(known) if len(known) == len(patches) else None)


def recorded_source(directory: Path, starts: list[Start]) -> Source:
    """Return the code of a run's last attempt: the recorded commit, and the patch in the run's directory."""
    if not starts:
        return Source(None, None)
    commit, sha256 = starts[-1].get("git_commit"), starts[-1].get("diff_sha256")
    if sha256 is None:
        return Source(commit, b"" if starts[-1].get("git_dirty") is False else None)
    try:
        with open_regular(patch_path(directory, sha256)) as file:
            patch = file.read(MAX_PATCH_BYTES)
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
    objects, top = _git("rev-parse", "--path-format=absolute", "--git-path", "objects"), _top()
    if objects is None or top is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        temporary = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.fsdecode(objects.removesuffix(b"\n")),
        }
        trees = [tree for source in (old, new) if (tree := _tree(source, top, temporary)) is not None]
        if len(trees) < 2:
            return None
        counts = _git("diff", "--numstat", "--no-renames", "-z", *trees, "--", ".", environment=temporary)
        patch = _git("diff", *DIFF_OPTIONS, *trees, "--", ".", environment=temporary)
    if counts is None or patch is None:
        return None
    rows = [os.fsdecode(row).split("\t", 2) for row in counts.split(b"\0") if row]
    return Changes({name: "binary" if added == "-" else f"+{added} −{removed}" for added, removed, name in rows}, patch)


def _tree(source: Source, top: str, environment: Mapping[str, str]) -> str | None:
    """Write the source as a git tree to the environment's object directory. Returns its hash, or None if git fails."""
    if source.commit is None or source.patch is None:
        return None
    read = _git("read-tree", source.commit, environment=environment)
    applied = read is not None and (
        not source.patch
        or _git("apply", "--cached", "--whitespace=nowarn", "-", cwd=top, stdin=source.patch, environment=environment)
        is not None
    )
    tree = _git("write-tree", environment=environment) if applied else None
    return None if tree is None else tree.decode().strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _top() -> str | None:
    """Return the root of the git repository that contains the project."""
    top = _git("rev-parse", "--show-toplevel")
    return None if top is None else os.fsdecode(top.removesuffix(b"\n"))


def _git(
    *arguments: str,
    cwd: str | None = None,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    success: tuple[int, ...] = (0,),
) -> bytes | None:
    """Run git and return its output, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or project.root(),
            env={**os.environ, **(environment or {})},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode in success else None


def _git_diff_new(name: str, top: str) -> bytes | None:
    """Return the patch that adds an untracked file. Git exits with 1 because the file differs from nothing."""
    return _git("diff", "--no-index", *DIFF_OPTIONS, "--", "/dev/null", name, cwd=top, success=(0, 1))
