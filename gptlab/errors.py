"""Errors that end a command with one line on stderr and their exit code.

The line says what is wrong, where, and how to fix it. Any other exception is a bug and keeps its traceback.
"""

import errno
from typing import Any

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_SIGINT = 130

EXPECTED_OS_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Error numbers with a cause outside gptlab, such as a full disk or missing permissions. Others point to a bug."""


class GptlabError(Exception):
    """The command failed for a reason other than its input, such as a run that another process is training."""

    exit_code = EXIT_FAILED


class BadInputError(GptlabError):
    """A spec, option, text or name is invalid. Nothing was written."""

    exit_code = EXIT_BAD_INPUT


class AmbiguousRunError(BadInputError):
    """A prefix matches several runs."""


class DivergedError(GptlabError):
    """The loss or the gradient norm is not finite."""

    exit_code = EXIT_DIVERGED

    def __init__(self, message: str, **facts: Any) -> None:
        """Keep `facts` for the attempt's row in `attempts.jsonl`."""
        super().__init__(message)
        self.facts = facts
