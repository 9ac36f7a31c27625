"""The named experiments: every `Experiment` that a module in `experiments/` defines."""

import ast
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.spec import Experiment, did_you_mean, explain


def experiments() -> dict[str, Experiment]:
    """All experiments by name, in the order of their files and within them of their definition.

    Raises:
        BadInputError: A file does not import, holds an invalid spec, or repeats another's name.
    """
    found: dict[str, Experiment] = {}
    files: dict[str, Path] = {}
    folder = project.root() / "experiments"
    for file in sorted(folder.glob("*.py")):
        if file.stem == "__init__":
            continue
        for experiment in _defined_in(file):
            name = experiment.name
            if name in found and found[name] is not experiment:
                raise BadInputError(
                    f"two experiments are named '{name}': one in {project.shown(files[name])} "
                    f"and one in {project.shown(file)}; rename one"
                )
            if name not in found:
                found[name], files[name] = experiment, file
    return found


def find(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        BadInputError: There is none; the message names the nearest.
    """
    known = experiments()
    if name not in known:
        hint = did_you_mean(name, list(known)) or f"; there are: {', '.join(known)}"
        raise BadInputError(f"there is no experiment '{name}'{hint}")
    return known[name]


def _defined_in(file: Path) -> Iterator[Experiment]:
    root = str(file.parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = importlib.import_module(f"{file.parent.name}.{file.stem}")
    except Exception as error:  # whatever a user's file may raise
        raise BadInputError(f"{project.shown(file)}{_line_in(file, error)}: {_what(error)}") from error
    tree = ast.parse(file.read_text(encoding="utf-8"))
    sources = [
        sys.modules.get(f"{file.parent.name}.{node.module}" if node.level else str(node.module))
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
    ]
    imported = {id(value) for source in sources if source for value in vars(source).values()}
    for value in vars(module).values():
        if isinstance(value, Experiment) and id(value) not in imported:
            yield value


def _line_in(file: Path, error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f":{lines[-1]}" if lines else ""


def _what(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, BadInputError):
        return str(error)
    return f"{type(error).__name__}: {error}"
