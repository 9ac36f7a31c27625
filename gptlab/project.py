"""Where the project, its runs and its cache are.

A project is a folder with `experiments/` and `pyproject.toml` that uses gptlab: `pyproject.toml` names it (as the
project, as a dependency, or in a `[tool.gptlab]` table), or an experiment imports it. Other repositories have such
folders too; their scripts are not executed.

The project's root is the nearest such folder at or above the working directory, so commands work from any folder of the
project (a notebook's working directory is `analysis/`). Code is imported from the root and git runs there. A folder
inside a run is never the root, because a run may be untrusted.
"""

import os
import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import platformdirs

from gptlab.errors import BadInputError

PACKAGE = "gptlab"
MARKER = "pyproject.toml"
MAX_BYTES = 1 << 20
"""How much of a file is read to recognize a project."""


def root() -> Path:
    """Return the root of the project that contains the working directory, else of this package's project.

    Raises:
        BadInputError: There is neither, or the project's `pyproject.toml` cannot be read.
    """
    found = find_root()
    if found is None:
        raise BadInputError(
            f"no folder at or above {Path.cwd()} is a gptlab project: one has experiments/ and a {MARKER} with "
            f"a dependency on {PACKAGE} or a [tool.{PACKAGE}] table; change to your project's folder"
        )
    return found


def find_root() -> Path | None:
    """Like `root`, but return None if there is no project."""
    here = Path.cwd()
    found = None
    for folder in (here, *here.parents):
        if (folder / "run.json").exists():
            found = None
        elif found is None and _is_project(folder):
            found = folder
    package = Path(__file__).resolve().parent.parent  # `site-packages`, unless the installation is editable
    return found or (package if _is_project(package) else None)


def runs_directory() -> Path:
    """Return `$GPTLAB_RUNS`, else `runs/` in the project."""
    return _directory_from("GPTLAB_RUNS") or root() / "runs"


def cache_directory() -> Path:
    """Return `$GPTLAB_CACHE`, else the user's cache directory (`$XDG_CACHE_HOME/gptlab` on Linux).

    Raises:
        BadInputError: There is no such directory, or the user has none.
    """
    if chosen := _directory_from("GPTLAB_CACHE"):
        return chosen
    try:
        return Path(platformdirs.user_cache_dir("gptlab")).absolute()
    except RuntimeError:
        raise BadInputError("the user has no home directory for the cache; set HOME or GPTLAB_CACHE") from None


def tool_table(name: str) -> dict[str, Any]:
    """Return the table `[tool.gptlab.NAME]` of the project's `pyproject.toml`; it is empty if there is none.

    Raises:
        BadInputError: The file is not valid TOML, or the value is not a table.
    """
    marker = root() / MARKER
    try:
        document = tomllib.loads(marker.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{marker} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInputError(f"{display_path(marker)} is not valid TOML: {error}") from None
    found = _table(_table(document, "tool"), PACKAGE).get(name, {})
    if not isinstance(found, dict):
        raise BadInputError(f"[tool.{PACKAGE}] in {display_path(marker)}: {name} must be a table, not {found!r:.100}")
    return found


def display_path(path: Path) -> str:
    """Return the path as a user would type it: relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _is_project(folder: Path) -> bool:
    marker, experiments = folder / MARKER, folder / "experiments"
    if not (experiments.is_dir() and marker.is_file()):
        return False
    try:
        return _names_gptlab(_beginning(marker)) or any(
            _imports_gptlab(file) for file in experiments.glob("[a-z]*.py") if file.is_file()
        )
    except OSError as error:
        raise BadInputError(f"{error.filename} cannot be read: {error.strerror}") from None
    except ValueError as error:  # whether this is the project is unknown, and another one must not take its place
        raise BadInputError(f"{display_path(marker)} is not valid TOML: {error}") from None


def _imports_gptlab(file: Path) -> bool:
    try:
        return bool(re.search(rb"^(import|from) gptlab\b", _beginning(file), re.MULTILINE))
    except OSError:  # this file cannot be imported; the others count
        return False


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


@lru_cache
def _names_gptlab(content: bytes) -> bool:
    """Return whether a `pyproject.toml` belongs to a gptlab project.

    Raises:
        ValueError: It names gptlab but is not valid TOML.
    """
    if PACKAGE not in content.decode(errors="replace").lower():
        return False
    document = tomllib.loads(content.decode())
    project, tool = _table(document, "project"), _table(document, "tool")
    requirements = chain(
        _strings(project.get("dependencies")),
        *map(_strings, _table(project, "optional-dependencies").values()),
        *map(_strings, _table(document, "dependency-groups").values()),
        _table(_table(tool, "poetry"), "dependencies"),
    )
    named = {re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower() for requirement in requirements}
    return PACKAGE in tool or PACKAGE in named or str(project.get("name")).lower() == PACKAGE


def _table(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _strings(values: Any) -> Iterable[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _directory_from(variable: str) -> Path | None:
    """Return the directory that an environment variable names, whether it exists or not; None if it is unset.

    Raises:
        BadInputError: The value cannot be a directory.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        path = Path(value).expanduser().absolute()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    except (OSError, RuntimeError):  # the name is too long, or `~user` does not exist
        nearest = None
    if nearest is None or not nearest.is_dir():
        raise BadInputError(f"{variable} is '{value}', which cannot be a directory; set it to one or unset it")
    return path
