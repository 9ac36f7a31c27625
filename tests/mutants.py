"""Fingerprints of edited code: each is computed in a forked child that imports what computes from edited sources."""

import gc
import importlib.machinery
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import gptlab
from gptlab.data.vocabularies import tokenizer_of
from gptlab.identity import Fingerprint
from gptlab.sources import import_closure
from gptlab.spec import Experiment
from gptlab.training.fingerprint import compute

PACKAGE = Path(gptlab.__file__).parent


def warm_up(changes: Mapping[str, Any]) -> None:
    """Compute a fingerprint in this process, so that a child finds torch imported and the sources parsed."""
    experiment = Experiment(name="original", why="What does every child need?").with_changes(changes)
    compute(experiment, tokenizer_of(experiment))
    for name in _loaded():
        _files(name)
    gc.freeze()  # else a child's collector copies all pages of the parent


def fingerprint_of(changes: Mapping[str, Any], edits: Mapping[str, str]) -> Fingerprint:
    """Return the fingerprint of a small experiment with edited code.

    Args:
        changes: The experiment's fields, by dotted key.
        edits: New sources by path in the package, such as `model/gpt.py`.

    Raises:
        RuntimeError: The edited code fails; the message is the child's traceback.
    """
    return Fingerprint.model_validate(with_edited_code(edits, lambda: _compute(changes)))


def with_edited_code(edits: Mapping[str, str], call: Callable[[], Any]) -> Any:
    """Return the JSON document that a function returns in a forked child, whose imports of the package are edited.

    Raises:
        RuntimeError: The function fails; the message is the child's traceback.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                _edit_imports({PACKAGE / name: source for name, source in edits.items()})
                answer = {"returned": call()}
            except BaseException:
                answer = traceback.format_exc()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer["returned"]


def _edit_imports(edits: Mapping[Path, str]) -> None:
    """In the child: import the package anew, from edited sources."""
    get_code, read_bytes = importlib.machinery.SourceFileLoader.get_code, Path.read_bytes

    def edited_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
        source = edits.get(Path(self.path))
        return get_code(self, fullname) if source is None else compile(source, self.path, "exec")

    importlib.machinery.SourceFileLoader.get_code = edited_code  # type: ignore[method-assign] # only in this child
    Path.read_bytes = lambda self: edits[self].encode() if self in edits else read_bytes(self)  # type: ignore[method-assign] # likewise
    for name in _loaded():
        if not _is_kept(name, edits):
            del sys.modules[name]


def _compute(changes: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: return the fingerprint's fields."""
    from gptlab.data.vocabularies import tokenizer_of
    from gptlab.spec import Experiment
    from gptlab.training.fingerprint import compute

    experiment = Experiment(name="mutant", why="Is the edit noticed?").with_changes(changes)
    return compute(experiment, tokenizer_of(experiment), changes.get("train.precision", "float32")).model_dump()


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "gptlab"]


@cache
def _files(module: str) -> frozenset[Path]:
    """Return the files of the package that a module consists of and imports, directly or not."""
    return frozenset(import_closure([module], {"gptlab": PACKAGE}).values())


def _is_kept(module: str, edits: Mapping[Path, str]) -> bool:
    """Return whether a module neither computes nor is edited, nor are those that it imports.

    Importing such modules again would take half of the time of an edit.
    """
    if module == "gptlab.sources":
        return True  # it remembers what it has parsed
    computes = [PACKAGE / name for name in ("data", "model", "training", "parts.py", "randomness.py")]
    return not any(path in edits or path in computes or path.parent in computes for path in _files(module))
