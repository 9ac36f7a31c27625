"""The runs that a command's arguments name: ids, unique prefixes of ids, directories and patterns."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.tracking.run import Run, find_run, load_run, run_directories


def is_pattern(reference: str) -> bool:
    """Return whether an argument selects runs by a pattern such as `tiny-*-s*`, and not one run."""
    return "/" not in reference and any(character in reference for character in "*?[")


def find_runs(references: Sequence[str]) -> list[Run]:
    """Return the runs that ids, prefixes of ids, directories and patterns select, each once.

    Raises:
        BadInputError: An argument selects no run, or is a prefix of several.
        GptlabError: A run cannot be loaded.
    """
    selected: dict[Path, Run] = {}
    for reference in references:
        for run in _matching(reference) if is_pattern(reference) else [find_run(reference)]:
            selected.setdefault(run.directory.resolve(), run)
    return list(selected.values())


def _matching(pattern: str) -> list[Run]:
    found = [load_run(directory) for directory in run_directories() if fnmatchcase(directory.name, pattern)]
    if not found:
        runs = project.display_path(project.runs_directory())
        raise BadInputError(f"no run in {runs} matches '{pattern}'; `gptlab runs` lists them")
    return found
