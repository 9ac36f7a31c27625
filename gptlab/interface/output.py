"""What commands print, ask and exit with, and how they import heavy modules."""

import gc as garbage
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from gptlab.errors import EXIT_FAILED, BadInputError
from gptlab.imports import importing
from gptlab.terminal.text import printable


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Turn garbage collection off during imports, and exempt the imported objects from later collections.

    Imported objects are not garbage, and scanning them takes a tenth of the import time.
    """
    garbage.disable()
    try:
        with importing("torch"):
            yield
    finally:
        garbage.freeze()
        garbage.enable()


def print_line(text: str, *, stderr: bool = False) -> None:
    """Print a text as one line without control characters."""
    (sys.stderr if stderr else sys.stdout).write(printable(text).replace("\n", " ") + "\n")


def print_json(document: Any) -> None:
    """Print a document as JSON on stdout."""
    from gptlab.terminal.json_output import print_json

    print_json(document)


def exit_with(result: Any, as_json: bool) -> None:
    """Print the result's document with `--json`, and exit with its code."""
    if as_json:
        print_json(result.document())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def fail_with(problems: list[str]) -> None:
    """Print each problem as an error, and exit with an error code if there is one."""
    for problem in problems:
        print_line(f"error: {problem}", stderr=True)
    if problems:
        raise typer.Exit(EXIT_FAILED)


def confirmed(question: str, yes: bool, command: list[str], *, stderr: bool = False) -> bool:
    """Ask on a terminal, unless `--yes` was given.

    Raises:
        BadInputError: Without a terminal, `--yes` is needed.
    """
    if not yes and not sys.stdin.isatty():
        again = shlex.join(["gptlab", *command, "--yes"])
        raise BadInputError(f"stdin is not a terminal; pass --yes to confirm: {again}")
    return yes or typer.confirm(printable(question), err=stderr)
