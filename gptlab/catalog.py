"""The catalog of experiments: every `Experiment` that a file in `experiments/` defines.

Only regular files named `[a-z]*.py` count, so that an editor's lock or a backup does no harm. A file that cannot be
imported costs its own experiments: the others are found, and one line on stderr names the file.
"""

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.experiment_files import read_file
from gptlab.spec import Experiment
from gptlab.validation import suggest

FILES = "[a-z]*.py"


@dataclass(frozen=True)
class Problem:
    """Experiments that cannot be used."""

    message: str
    """One line that names the file."""
    names: frozenset[str]
    """Names that the experiments may have."""


@dataclass(frozen=True)
class Catalog:
    """The experiments by name, ordered by file and then by definition, and what is wrong with others."""

    experiments: dict[str, Experiment]
    problems: list[Problem]

    def problem_with(self, name: str) -> Problem | None:
        """Return the problem that may be why there is no experiment with this name."""
        return next((problem for problem in self.problems if name in problem.names), None)


def load() -> Catalog:
    """Read all experiments of the project.

    Raises:
        BadInputError: There is no project, or `experiments/` cannot be read.
    """
    defined: dict[str, list[tuple[Path, Experiment]]] = {}
    problems = []
    for file in _files(project.root() / "experiments"):
        words = _words(file)  # before the import, which may remove the file
        definitions = read_file(file)
        if definitions.problem:
            problems.append(Problem(definitions.problem, words | {file.stem}))
        for experiment in definitions.experiments:
            defined.setdefault(experiment.name, []).append((file, experiment))
    for name, places in defined.items():
        if len(places) > 1:
            files = " and one in ".join(project.display_path(file) for file, _ in places[:2])
            problems.append(
                Problem(f"two experiments are named '{name}': one in {files}; rename one", frozenset({name}))
            )
    return Catalog({name: places[0][1] for name, places in defined.items() if len(places) == 1}, problems)


def experiments() -> dict[str, Experiment]:
    """Return the experiments by name, after a line on stderr for each problem with others.

    Raises:
        BadInputError: See `load`.
    """
    catalog = load()
    report(catalog.problems)
    return catalog.experiments


def find(name: str) -> Experiment:
    """Return the experiment with a name, after a line on stderr for each problem with others.

    Raises:
        BadInputError: There is none (the message says what may be wrong with it, or suggests the closest name); or see
            `load`.
    """
    catalog = load()
    problem = catalog.problem_with(name) if name not in catalog.experiments else None
    report(other for other in catalog.problems if other is not problem)
    if problem:
        raise BadInputError(problem.message)
    known = catalog.experiments
    if name not in known:
        raise BadInputError(f"there is no experiment '{name}'{suggest(name, known)}{_unread_files()}")
    return known[name]


def report(problems: Iterable[Problem]) -> None:
    """Print a line on stderr for each problem."""
    for problem in problems:
        with suppress(AttributeError, OSError, ValueError):  # there is no stderr
            sys.stderr.write(f"note: {problem.message}\n")


def _unread_files() -> str:
    """Return a hint at files that were perhaps meant to be read."""
    folder = project.root() / "experiments"
    unread = sorted(file.name for file in folder.glob("[!a-z_.]*.py") if file.is_file())
    return f"; not read, because its name does not begin with a to z: {unread[0]}" if unread else ""


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.match(FILES) and file.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInputError(f"{project.display_path(folder)} cannot be read: {error.strerror}") from None


def _words(file: Path) -> frozenset[str]:
    """Return everything in a file that could be an experiment's name."""
    try:
        return frozenset(re.findall(r"[a-z0-9][a-z0-9._-]*", file.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return frozenset()
