"""The catalog of experiments: every `Experiment` that a module in `experiments/` defines."""

import ast
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.spec import Experiment, explain_spec_error
from gptlab.validation import did_you_mean


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, ordered by file and then by definition.

    Raises:
        BadInputError: A file cannot be imported, holds an invalid spec, or repeats a name.
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
                    f"two experiments are named '{name}': one in {project.display_path(files[name])} "
                    f"and one in {project.display_path(file)}; rename one"
                )
            if name not in found:
                found[name], files[name] = experiment, file
    return found


def find(name: str) -> Experiment:
    """Return the experiment with a name.

    Raises:
        BadInputError: There is none (the message suggests the closest name), or `experiments` raises it.
    """
    known = experiments()
    if name not in known:
        hint = did_you_mean(name, known) or f"; available: {', '.join(known)}"
        raise BadInputError(f"there is no experiment '{name}'{hint}")
    return known[name]


def _defined_in(file: Path) -> Iterator[Experiment]:
    """Import a file and yield its experiments, without those that it imports from other modules."""
    root = str(file.parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = importlib.import_module(f"{file.parent.name}.{file.stem}")
    except Exception as error:  # a user's file can raise anything
        raise BadInputError(f"{project.display_path(file)}{_line_in(file, error)}: {_reason(error)}") from error
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


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return explain_spec_error(error)
    if isinstance(error, BadInputError):
        return str(error)
    return f"{type(error).__name__}: {error}"
