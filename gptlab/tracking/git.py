"""Run git in the project, as a program that only answers questions."""

import os
import subprocess
from collections.abc import Mapping

from gptlab import project

TIMEOUT_S = 30.0
MAX_REASON = 300
"""Characters of git's own words that a message quotes."""

ELSEWHERE = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_ATTR_SOURCE",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_CONFIG_PARAMETERS",
        "GIT_DIFF_OPTS",
        "GIT_DIR",
        "GIT_EXTERNAL_DIFF",
        "GIT_GLOB_PATHSPECS",
        "GIT_GRAFT_FILE",
        "GIT_ICASE_PATHSPECS",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NAMESPACE",
        "GIT_NOGLOB_PATHSPECS",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
"""Variables, which git sets for its hooks, that would make git look at another repository or print another patch."""
OPTIONS = ("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false")
"""No other program is started, and an index that is not the repository's own writes nothing into it."""


class GitError(Exception):
    """Git cannot answer; the message is its own reason in one line."""


def git(
    *arguments: str, stdin: bytes = b"", cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> bytes:
    """Run git in the project and return its output.

    Raises:
        GitError: Git is not installed, fails, or does not answer within `TIMEOUT_S`.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name not in ELSEWHERE and not name.startswith("GIT_TRACE")
    }
    try:
        done = subprocess.run(
            ["git", *OPTIONS, *arguments],
            cwd=cwd or project.root(),
            env={**inherited, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} did not answer within {TIMEOUT_S:g} s") from None
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    except OSError as error:
        raise GitError(f"git cannot be started: {error.strerror}") from None
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split()).removeprefix("fatal: ")
        raise GitError(f"git says: {words[:MAX_REASON]}" if words else f"git {arguments[0]} failed ({done.returncode})")
    return done.stdout
