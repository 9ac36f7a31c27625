"""Errors that end a command with one line on stderr and an exit code of their own.

The line says what is wrong, where, and how to mend it. Anything else that is raised is a bug and keeps its traceback.
"""

from typing import Any

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class GptlabError(Exception):
    """Something went wrong that is not the input's fault, such as a run that another process holds."""

    exit_code = EXIT_FAILED


class BadInputError(GptlabError):
    """A spec, option, text or name that cannot be used as it is; nothing was written."""

    exit_code = EXIT_BAD_INPUT


class AmbiguousRunError(BadInputError):
    """Several runs could be meant."""


class DivergedError(GptlabError):
    """The loss or the gradient norm is not finite."""

    exit_code = EXIT_DIVERGED

    def __init__(self, message: str, **facts: Any) -> None:
        """Keep what `attempts.jsonl` records about it beside the message."""
        super().__init__(message)
        self.facts = facts
