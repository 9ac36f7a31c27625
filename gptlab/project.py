"""Where the project, its runs and its cache are.

The project's root is the nearest folder at or above the working directory that holds `experiments/` and
`pyproject.toml`, so commands work from any folder of the project (a notebook's working directory is `analysis/`). Code
is imported from the root and git runs there. A folder inside a run is never the root, because a run may be untrusted.
"""

import os
from pathlib import Path

import platformdirs

from gptlab.errors import BadInputError


def root() -> Path:
    """Return the root of the project that contains the working directory, else of this package's project."""
    here = Path.cwd()
    found = None
    for folder in (here, *here.parents):
        if (folder / "run.json").exists():
            found = None
        elif found is None and (folder / "experiments").is_dir() and (folder / "pyproject.toml").is_file():
            found = folder
    return found or Path(__file__).resolve().parent.parent


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


def display_path(path: Path) -> str:
    """Return the path as a user would type it: relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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
