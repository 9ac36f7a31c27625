"""What this machine needs to compile kernels, and where the compiled ones are kept."""

import os
import shlex
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gptlab import project


@cache
def missing(device: str) -> str | None:
    """Return what a machine lacks to compile kernels for a device, and how to install it; None if it lacks nothing.

    `torch.compile` and Triton translate kernels with a C compiler and Python's header files.
    """
    if device == "cuda" and find_spec("triton") is None:
        return "the package triton (pip install triton)"
    variable, names = ("CXX", ("g++", "clang++", "c++")) if device == "cpu" else ("CC", ("gcc", "clang", "cc"))
    own = shlex.split(os.environ.get(variable, ""))[:1]
    if not any(map(shutil.which, own or names)):
        return f"a compiler (install {names[0]}, or set {variable})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's header files (install python3-dev)"
    return None


def keep_kernels() -> None:
    """Keep compiled kernels in the cache directory, unless the user has chosen another place.

    Call it before the first kernel is compiled.

    Raises:
        BadInputError: There is no cache directory.
    """
    kernels = project.cache_directory() / "kernels"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(kernels / "triton"))
