"""Import everything that a command may import, so that forked children need not."""

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import analysis
import gptlab
from torture.place import Place, must, use
from torture.process import REPORT

ENTRY = "__main__"
"""The last part of the names of modules that run a command when they are imported."""


def warm_up() -> None:
    """Import all modules of gptlab and analysis, without a thread or a computation."""
    for package in (gptlab, analysis):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(ENTRY):
                importlib.import_module(module.name)


def learn_commands(place: Place) -> None:
    """Run the commands that import the most, and import here what they imported."""
    use(place.root / "finished")
    for words in (["show", "micro"], ["sample", place.ids["micro"]], [REPORT]):
        must(*words, at_end=learn(place.root / "modules"))
        import_learnt(place.root / "modules")


def learn(path: Path) -> Callable[[], None]:
    """Return what a child calls last, so that it writes the names of all modules that its command imported."""
    return lambda: path.write_text("\n".join(sys.modules))


def import_learnt(path: Path) -> None:
    """Import the modules that a child imported."""
    for name in path.read_text().split("\n"):
        if name not in sys.modules and not name.endswith(ENTRY) and not name.startswith("experiments"):
            with contextlib.suppress(ImportError):  # a module that only exists in memory
                importlib.import_module(name)
