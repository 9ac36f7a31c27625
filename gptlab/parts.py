"""Find the parts that a spec names, built in or in the user's own `experiments/` folder.

This is the only place where the name of a part becomes code. A name leads to a file below `experiments/` of the project
that the working directory belongs to (`project.root`), never to one in a run's directory. A part is imported once per
process; it may import other parts, torch and `gptlab.model`.
"""

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.experiment_files import importable, line_in, reason
from gptlab.part_names import BUILT_IN, is_part
from gptlab.validation import suggest


def resolve(field: str, name: str) -> Any:
    """Return the function or class that a field names.

    Args:
        field: The field's dotted key, such as `model.norm`.
        name: The field's value.

    Raises:
        BadInputError: The part is gone, cannot be imported, or cannot be called. The message names file and line.
    """
    if field not in BUILT_IN or not (is_part(name) or name in BUILT_IN[field]):
        raise BadInputError(f"there is no part '{name}' for {field}")
    if not is_part(name):
        module, _, attribute = BUILT_IN[field][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    try:
        return _import(project.root(), name)
    except BadInputError as error:
        raise BadInputError(f"{field} is {name}, but {error}") from error


def call(field: str, name: str, *arguments: Any) -> Any:
    """Call the function or class that a field names.

    Raises:
        BadInputError: See `resolve`; or the part raised an error.
    """
    part = resolve(field, name)
    if not is_part(name):
        return part(*arguments)
    try:
        return part(*arguments)
    except Exception as error:
        raise failure(field, name, error) from error


def failure(field: str, name: str, error: BaseException) -> BadInputError:
    """Return an error in one line for an exception that a part raised."""
    if isinstance(error, BadInputError):  # of a part that this part uses
        return error
    return BadInputError(f"{field} is {name}, but {_where(source_file(name), error)}")


def source_file(name: str) -> Path:
    """Return the file that should define a part of the user's own, whether it exists or not.

    Raises:
        BadInputError: There is no project.
    """
    return _source_file(project.root(), name)


def _source_file(root: Path, name: str) -> Path:
    place = root.joinpath(*name.partition(":")[0].split("."))
    package = place / "__init__.py"
    return package if package.is_file() else place.with_name(f"{place.name}.py")


@lru_cache
def _import(root: Path, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    file = _source_file(root, name)
    if not file.is_file():
        raise BadInputError(f"there is no file {project.display_path(file)}; restore it, or name another part")
    try:
        with importable(root / "experiments"):
            module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's file can raise anything, such as SystemExit
        raise BadInputError(f"{_where(file, error)}") from error
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != file.resolve():
        raise BadInputError(f"{module_name} is another file, {found}; rename {project.display_path(file)}")
    if not hasattr(module, attribute):
        hint = suggest(attribute, [known for known, value in vars(module).items() if _is_defined_in(module, value)])
        raise BadInputError(f"{project.display_path(file)} defines no {attribute}{hint}")
    part = getattr(module, attribute)
    if not callable(part):
        raise BadInputError(f"{attribute} in {project.display_path(file)} is no function or class")
    return part


def _is_defined_in(module: Any, value: Any) -> bool:
    """Return whether a value is a function or class of the module, and not imported from another one."""
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _where(file: Path, error: BaseException) -> str:
    return f"{project.display_path(file)}{line_in(file, error)}: {reason(error)}"
