"""Start the mirror process. Run by path, so it works wherever gptlab is installed, or is not.

    python gptlab/mirror/__main__.py ARGUMENTS     see `gptlab.mirror.process`

With `PYTHONSAFEPATH` neither the working directory nor this folder is on the import path, where a file of the project
such as `random.py` would hide a module of Python. The package is loaded from the folder that this file is in.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

spec = PathFinder.find_spec("gptlab", [str(Path(__file__).resolve().parents[2])])
if spec is None or spec.loader is None:
    sys.exit("the package gptlab is incomplete")
sys.modules["gptlab"] = package = module_from_spec(spec)
spec.loader.exec_module(package)

from gptlab.mirror.process import main  # noqa: E402 - after the package has been loaded

main()
