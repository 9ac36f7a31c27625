"""Where things lie: the project's root, the runs and the cache.

The root is the nearest folder at or above the working directory that holds `experiments/` and `pyproject.toml`, so
that commands work from any folder of the project (a notebook's working directory is `analysis/`). Code is imported from
there, and git runs there: so it is never inside a run, which a stranger may have made.
"""

import os
from pathlib import Path

import platformdirs

from gptlab.errors import BadInputError


def root() -> Path:
    """The project that the working directory belongs to, else the one that this package was installed from."""
    here = Path.cwd()
    found = None
    for folder in (here, *here.parents):
        if (folder / "run.json").exists():
            found = None
        elif found is None and (folder / "experiments").is_dir() and (folder / "pyproject.toml").is_file():
            found = folder
    return found or Path(__file__).resolve().parent.parent


def runs_directory() -> Path:
    """`$GPTLAB_RUNS`, else `runs/` in the project."""
    return _named_by("GPTLAB_RUNS") or root() / "runs"


def cache_directory() -> Path:
    """`$GPTLAB_CACHE`, else the user's cache directory (`$XDG_CACHE_HOME/gptlab` on Linux)."""
    return _named_by("GPTLAB_CACHE") or Path(platformdirs.user_cache_dir("gptlab")).absolute()


def _named_by(variable: str) -> Path | None:
    """The directory that an environment variable names, there already or not; None where it is not set.

    Raises:
        BadInputError: It can be no directory.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        path = Path(value).expanduser().absolute()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    except (OSError, RuntimeError):  # too long, a home that nobody has
        nearest = None
    if nearest is None or not nearest.is_dir():
        raise BadInputError(f"{variable} is '{value}', which can be no directory; give the path of one, or unset it")
    return path


def shown(path: Path) -> str:
    """The path as a person would type it: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
