"""The catalog: every `Experiment` and every `Sweep` that a file in `experiments/` defines.

Only regular files named `[a-z]*.py` count, so that an editor's lock or a backup does no harm. A file that cannot be
imported costs its own experiments: the others are found, and one line on stderr names the file.
"""

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.experiment_files import read_file
from gptlab.spec import Experiment
from gptlab.sweeps import Sweep
from gptlab.validation import suggest

FILES = "[a-z]*.py"

ValueT = TypeVar("ValueT")
Places = dict[str, list[tuple[Path, ValueT]]]
"""The values of each name, with their files."""


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
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    """By name, in the same order. None has the name of an experiment."""

    def problem_with(self, name: str) -> Problem | None:
        """Return the problem that may be why there is no experiment with this name."""
        return next((problem for problem in self.problems if name in problem.names), None)


def load() -> Catalog:
    """Read all experiments and sweeps of the project.

    Raises:
        BadInputError: There is no project, or `experiments/` cannot be read.
    """
    experiments: Places[Experiment] = {}
    sweeps: Places[Sweep] = {}
    problems: list[Problem] = []
    for file in _files(project.root() / "experiments"):
        words = _words(file)  # before the import, which may remove the file
        definitions = read_file(file)
        if definitions.problem:
            problems.append(Problem(definitions.problem, words | {file.stem}))
        for experiment in definitions.experiments:
            experiments.setdefault(experiment.name, []).append((file, experiment))
        for sweep in definitions.sweeps:
            sweeps.setdefault(sweep.name, []).append((file, sweep))
    own_names = {name: places for name, places in sweeps.items() if name not in experiments}
    problems += [
        Problem(f"a sweep and an experiment are named '{name}'; rename the sweep", frozenset())
        for name in sweeps
        if name in experiments
    ]
    return Catalog(
        _unique(experiments, "experiments", problems), problems, sweeps=_unique(own_names, "sweeps", problems)
    )


def _unique(defined: Places[ValueT], kind: str, problems: list[Problem]) -> dict[str, ValueT]:
    """Return what is defined once, by name, and add a problem for each other name."""
    for name, places in defined.items():
        if len(places) > 1:
            files = " and one in ".join(project.display_path(file) for file, _ in places[:2])
            problems.append(Problem(f"two {kind} are named '{name}': one in {files}; rename one", frozenset({name})))
    return {name: places[0][1] for name, places in defined.items() if len(places) == 1}


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
    if name in catalog.sweeps:
        raise BadInputError(f"'{name}' is a sweep, not an experiment; start its runs with: gptlab sweep {name}")
    return _find([name], catalog, catalog.experiments, "experiment")[0]


def find_all(names: list[str], catalog: Catalog) -> list[Sweep | Experiment]:
    """Return the sweeps and experiments with these names, after a line on stderr for each problem with others.

    Raises:
        BadInputError: One does not exist; see `find`.
    """
    return _find(names, catalog, {**catalog.sweeps, **catalog.experiments}, "sweep or experiment")


def _find(names: list[str], catalog: Catalog, known: dict[str, ValueT], kind: str) -> list[ValueT]:
    missing = next((name for name in names if name not in known), None)
    problem = None if missing is None else catalog.problem_with(missing)
    report(other for other in catalog.problems if other is not problem)
    if problem:
        raise BadInputError(problem.message)
    if missing is not None:
        raise BadInputError(f"there is no {kind} '{missing}'{suggest(missing, known)}{_unread_files()}")
    return [known[name] for name in names]


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
