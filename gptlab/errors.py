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
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.ENOTCONN,
        errno.ENOTDIR,
        errno.ENOTSUP,
        errno.ENXIO,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ETXTBSY,
        errno.EXDEV,
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


OUT_OF_MEMORY_PHRASES = (
    "allocate memory",
    "out of memory",
    "failed to map segment",
    "start new thread",
    "launch worker thread",
    "bad_alloc",
)
"""Parts of the messages of libraries that get no memory, not even for a thread's stack."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or the error behind it, says that there is no memory."""
    cause = error.__cause__ or error.__context__
    return (
        isinstance(error, MemoryError)
        or any(message in str(error).lower() for message in OUT_OF_MEMORY_PHRASES)
        or (cause is not None and is_out_of_memory(cause))
    )
