"""The code of bundled runs: commits and patches, to be read and never to be applied."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.bundles.contents import Attempt, patch_name
from gptlab.bundles.runs import UnpackedRun
from gptlab.bundles.unpack import Unpacked
from gptlab.terminal.text import INVISIBLE
from gptlab.tracking.git import GitError, git
from gptlab.tracking.provenance import MAX_PATCH_BYTES, Source
from gptlab.untrusted import open_regular

SHOWN_LINES = 20
SHOWN_COLUMNS = 160


@dataclass(frozen=True)
class Patch:
    """A patch of a bundle, made safe for a terminal."""

    name: str
    """In the bundle."""
    files: tuple[str, ...]
    """The files that it changes."""
    lines: tuple[str, ...]
    """Its first lines."""
    more: int
    """How many lines follow."""


@dataclass(frozen=True)
class Code:
    """The code of an attempt, and whether it is the one here."""

    commit: str | None
    patch: Patch | None
    same: bool
    """Whether it is the code of this project: the same commit and the same uncommitted changes."""
    known: bool
    """Whether the commit is in this project's repository."""

    def document(self) -> dict[str, Any]:
        """Return this part of what `gptlab verify --json` prints."""
        patch = self.patch and {"name": self.patch.name, "files": list(self.patch.files)}
        return {"git_commit": self.commit, "patch": patch, "same_as_here": self.same, "in_this_repository": self.known}

    def commands(self, bundle: Path) -> list[str]:
        """Return what a user would type to get this code."""
        commands = [f"git checkout {self.commit}"] if self.commit else []
        if self.commit and self.patch:
            commands.append(f"{show_command(bundle, self.patch.name)} | git apply")
        return commands


def show_command(bundle: Path, name: str) -> str:
    """Return the command that prints a file of a bundle."""
    return shlex.join(["tar", "-xOf", str(bundle), name])


def code_of(found: UnpackedRun, bundle: Unpacked, here: Source) -> list[Code]:
    """Return the code of a run's attempts, each once.

    Args:
        found: The run.
        bundle: Its bundle.
        here: The code of this project.
    """
    return [_code(found, attempt, bundle, here) for attempt in dict.fromkeys(found.needs.attempts)]


def escape(text: str) -> str:
    r"""Return text on one line, with what a terminal could interpret or hide as escapes such as `\x1b`."""
    return "".join(c if c == "\t" or (c.isprintable() and not INVISIBLE.match(c)) else ascii(c)[1:-1] for c in text)


def _code(found: UnpackedRun, attempt: Attempt, bundle: Unpacked, here: Source) -> Code:
    commit, sha256 = attempt.git_commit, attempt.diff_sha256
    patch = _read_patch(bundle, patch_name(found.needs.run, sha256)) if sha256 else None
    same = commit is not None and here.patch is not None and (commit, sha256) == (here.commit, here.patch_sha256)
    return Code(commit, patch, same, known=commit is not None and (same or _is_known(commit)))


def _read_patch(bundle: Unpacked, name: str) -> Patch:
    with open_regular(bundle.folder / name) as file:
        text = file.read(MAX_PATCH_BYTES).decode(errors="backslashreplace")
    lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    names = re.findall(r"^diff --git a/.*? b/(.*)$", text, re.MULTILINE)
    shown = tuple(escape(line[:SHOWN_COLUMNS]) for line in lines[:SHOWN_LINES])
    return Patch(name, tuple(map(escape, names)), shown, len(lines) - len(shown))


def _is_known(commit: str) -> bool:
    try:
        git("cat-file", "-e", f"{commit}^{{commit}}")
    except GitError:
        return False
    return True
