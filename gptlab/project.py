"""Where things lie: the project's root, the runs and the cache.

The root is the nearest folder at or above the working directory that holds `experiments/` and `pyproject.toml`, so
that commands work from any folder of the project (a notebook's working directory is `analysis/`). Code is imported from
there, and git runs there: so it is never inside a run, which a stranger may have made.
"""

import os
from pathlib import Path

import platformdirs


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
    return Path(os.environ.get("GPTLAB_RUNS") or root() / "runs").expanduser().absolute()


def cache_directory() -> Path:
    """`$GPTLAB_CACHE`, else the user's cache directory (`$XDG_CACHE_HOME/gptlab` on Linux)."""
    return Path(os.environ.get("GPTLAB_CACHE") or platformdirs.user_cache_dir("gptlab")).expanduser().absolute()


def shown(path: Path) -> str:
    """The path as a person would type it: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
