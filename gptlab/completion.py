"""What the shell completes: commands, options, runs, experiments and named texts.

The shell starts the program with `_GPTLAB_COMPLETE` at each Tab. So this is quick, imports no torch or pandas, and says
nothing about errors: it then completes nothing. Experiments are found as `gptlab list` finds them, so only files of a
gptlab project are imported, and nothing in a run's directory is.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from gptlab.terminal.output import discard

VARIABLE = "_GPTLAB_COMPLETE"
LIMIT_S = 5
"""A file of experiments may take long to import; a user who waits at Tab does not."""


def is_asked_for() -> bool:
    """Return whether this process was started by a shell's completion."""
    return bool(os.environ.get(VARIABLE))


def answer(command: Any) -> int:
    """Print what the shell asks for, and return the exit code.

    Args:
        command: Typer's command.
    """
    discard(sys.stderr)  # where a file of experiments prints when it is imported
    previous = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LIMIT_S)
    try:
        command.main([], prog_name="gptlab", complete_var=VARIABLE)
    except SystemExit as exit_:  # fish reads it
        return exit_.code if isinstance(exit_.code, int) else 0
    except Exception:  # a shell that asks in another way; a message would end up in the command line
        return 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return 0


def runs(incomplete: str) -> list[str]:
    """Return the ids of runs that begin like this."""
    return _quietly(_run_ids, incomplete)


def experiments(incomplete: str) -> list[str]:
    """Return the names of experiments that begin like this."""
    return _quietly(_experiment_names, incomplete)


def experiments_and_runs(incomplete: str) -> list[str]:
    """Return the names of experiments and the ids of runs that begin like this."""
    return experiments(incomplete) + runs(incomplete)


def sweeps_and_experiments(incomplete: str) -> list[str]:
    """Return the names of sweeps and experiments that begin like this."""
    return _quietly(_sweep_and_experiment_names, incomplete)


def texts(incomplete: str) -> list[str]:
    """Return the named texts that begin like this; the shell itself completes files if there is none."""
    return _quietly(_text_names, incomplete)


def _run_ids() -> list[str]:
    from gptlab import project

    return sorted(path.parent.name for path in project.runs_directory().glob("*/run.json"))


def _experiment_names() -> list[str]:
    from gptlab import catalog

    return list(catalog.load().experiments)


def _sweep_and_experiment_names() -> list[str]:
    from gptlab import catalog

    found = catalog.load()
    return [*found.sweeps, *found.experiments]


def _text_names() -> list[str]:
    return ["pandas-docs", "shakespeare"]


def _quietly(names: Callable[[], list[str]], incomplete: str) -> list[str]:
    """Return the names that can be typed and begin like this; none after an error."""
    try:
        return [name for name in names() if name.startswith(incomplete) and name.isprintable()]
    except Exception:  # no project, a folder that cannot be read, or no time left
        return []


def _give_up(signum: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError
