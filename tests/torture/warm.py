"""Import everything that a command may import, so that forked children need not."""

import importlib
import pkgutil

import analysis
import gptlab

NOT_IMPORTED = {"gptlab.__main__", "analysis.report"}
"""`python -m` runs them; runpy warns of a module that was imported before."""


def warm_up() -> None:
    """Import all modules of gptlab and analysis, without a thread or a computation."""
    for package in (gptlab, analysis):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in NOT_IMPORTED:
                importlib.import_module(module.name)
