"""Read what one file in `experiments/` defines, experiments and sweeps, whatever else it does when it is imported.

A file that only builds experiments is imported here. Any other file is imported in a child process, which sends its
experiments back as JSON: it may exit, print, hang, crash or change the interpreter, and only its own experiments
are missing.
"""

import ast
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gptlab import project
from gptlab.errors import EXIT_SIGINT, BadInputError, GptlabError
from gptlab.interrupts import interrupts
from gptlab.spec import Experiment, explain_spec_error
from gptlab.sweeps import Sweep

IMPORT_LIMIT_S = 60.0
MAX_REASON = 500
"""Characters of an error message that quote a file's exception."""

MODULES = {
    "gptlab.spec": frozenset({"Experiment", "ModelSpec", "DataSpec", "TrainSpec"}),
    "gptlab.sweeps": frozenset({"Sweep", "grid", "log_space", "log_uniform", "random", "uniform"}),
}
"""What a file that only builds experiments and sweeps may import and call, besides the values of such files."""
CALLABLE = frozenset({"range"}).union(*MODULES.values())
METHODS = frozenset({"vary", "with_changes"})
ModelT = TypeVar("ModelT", bound=BaseModel)
PLAIN_NODES = (
    ast.Module | ast.Expr | ast.Assign | ast.Call | ast.keyword | ast.Attribute | ast.Name | ast.Constant | ast.Dict
    | ast.List | ast.Tuple | ast.UnaryOp | ast.unaryop | ast.expr_context | ast.ImportFrom | ast.alias
)  # fmt: skip
"""Syntax of a file that only builds experiments and sweeps."""


class FileInterruptedError(GptlabError):
    """Ctrl-C while a file was imported."""

    exit_code = EXIT_SIGINT


@dataclass(frozen=True)
class Definitions:
    """What a file defines."""

    experiments: list[Experiment]
    """In the order of definition."""
    problem: str = ""
    """One line that names the file and says why it cannot be imported; then there is nothing else."""
    sweeps: list[Sweep] = field(default_factory=list)
    """In the order of definition."""


def read_file(file: Path) -> Definitions:
    """Import a file of an `experiments` folder.

    Raises:
        FileInterruptedError: Ctrl-C while the file was imported.
    """
    if "." in file.stem:
        return Definitions([], f"{project.display_path(file)}: a module's name has no dots; rename the file")
    return _import(file) if _is_plain(file, frozenset()) else _import_in_child(file)


def _import(file: Path) -> Definitions:
    """Import the file in this process."""
    try:
        tree = ast.parse(file.read_bytes(), str(file))
        with importable(file.parent):
            module = importlib.import_module(f"{file.parent.name}.{file.stem}")
        experiments, sweeps = _own_values(module, tree, Experiment), _own_values(module, tree, Sweep)
        return Definitions(list(experiments), sweeps=list(sweeps))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's file can raise anything, such as SystemExit
        return _failure(file, error)


def _failure(file: Path, error: BaseException) -> Definitions:
    return Definitions([], f"{project.display_path(file)}{line_in(file, error)}: {reason(error)}")


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the folder's modules importable for a while, and forget those of another project's folder.

    The project's root does not stay on the path: a file there may have the name of a module that others import later.
    """
    package = sys.modules.get(folder.name)
    if package is not None and str(folder) not in getattr(package, "__path__", ()):
        for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
            del sys.modules[name]
    path = str(folder.parent)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(path)


def _own_values(module: ModuleType, tree: ast.Module, kind: type[ModelT]) -> Iterator[ModelT]:
    """Yield a module's values of a type once each, without those that it imports from other modules."""
    sources = [sys.modules.get(name) for name in _imported_names(tree, module.__name__.partition(".")[0])]
    known = {id(value) for source in sources if source for value in vars(source).values()}
    for value in vars(module).values():
        if isinstance(value, kind) and id(value) not in known:
            known.add(id(value))
            yield value


def _imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, and of what it imports from modules."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def line_in(file: Path, error: BaseException) -> str:
    """Return the last line of a file that an exception passed through, as `:LINE`; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f":{lines[-1]}" if lines else ""


def reason(error: BaseException) -> str:
    """Describe an exception of a user's file in one line."""
    try:
        if isinstance(error, ValidationError):
            text = explain_spec_error(error)
        elif isinstance(error, BadInputError):
            text = str(error)
        else:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # an exception of the user's own whose text cannot be made
        text = type(error).__name__
    return _one_line(text)


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "�" for c in text).split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"


# --- Files that do more than building experiments ---


def _is_plain(file: Path, above: frozenset[Path]) -> bool:
    """Return whether a file, and each file that it imports, only builds experiments."""
    try:
        tree = ast.parse(file.read_bytes())
        package = file.parent / "__init__.py"
        if file in above or (not above and package.exists() and ast.parse(package.read_bytes()).body):
            return False
        known = {"range"}
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom):
                names = {alias.name for alias in statement.names}
                if names <= MODULES.get(statement.module or "", frozenset()):
                    pass
                elif not (imported := _sibling(file, statement)) or not _is_plain(imported, above | {file}):
                    return False
                known |= {alias.asname or alias.name for alias in statement.names}
            elif all(_is_plain_node(node, known) for node in ast.walk(statement)):
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                known |= {target.id for target in targets if isinstance(target, ast.Name)}
            else:
                return False
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _sibling(file: Path, statement: ast.ImportFrom) -> Path | None:
    """Return the file of the same folder from which a statement imports."""
    package, _, stem = (statement.module or "").rpartition(".")
    if not stem or "." in package or (statement.level, package) not in {(0, file.parent.name), (1, "")}:
        return None
    return file.with_name(f"{stem}.py")


def _is_plain_node(node: ast.AST, known: set[str]) -> bool:
    match node:
        case ast.Expr(value):
            return isinstance(value, ast.Constant)  # the docstring
        case ast.Assign(targets):
            return all(isinstance(target, ast.Name) and not target.id.startswith("__") for target in targets)
        case ast.Call(ast.Name(name)):
            return name in CALLABLE & known
        case ast.Call(ast.Attribute(_, name)):
            return name in METHODS
        case ast.Call():
            return False
        case ast.Attribute(_, name):
            return not name.startswith("_")
        case ast.Name(name, ast.Load()):
            return name in known
    return isinstance(node, PLAIN_NODES)


def _import_in_child(file: Path) -> Definitions:
    """Import the file in a forked child process and read its experiments from a pipe."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or not there
            stream.flush()  # else the child would write what is buffered once more
    reading, writing = os.pipe()
    child = interrupts.fork()
    if child == 0:
        try:
            os.close(reading)
            _serve(file, writing)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        interrupts.check()
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.readline()
    except KeyboardInterrupt:
        raise FileInterruptedError(f"interrupted while importing {project.display_path(file)}") from None
    finally:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)  # it has nothing left to do, or never ends
            status = os.waitpid(child, 0)[1]
    return _parse(file, answer, os.waitstatus_to_exitcode(status))


def _serve(file: Path, pipe: int) -> None:
    """In the child: import the file and write its definitions to the pipe. stdout belongs to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_LIMIT_S)
    with suppress(OSError):  # without stderr, stdout stays as it is
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        found = _import(file)
        experiments = [experiment.model_dump(mode="json") for experiment in found.experiments]
        sweeps = [sweep.model_dump(mode="json") for sweep in found.sweeps]
    except BaseException as error:  # the file raised KeyboardInterrupt, or its own subclass of Experiment anything
        found, experiments, sweeps = _failure(file, error), [], []
    answer = {"problem": found.problem, "experiments": experiments, "sweeps": sweeps}
    content = json.dumps(answer).encode() + b"\n"
    while content:
        content = content[os.write(pipe, content) :]
    with suppress(Exception):  # what the file printed
        sys.stderr.flush()


def _parse(file: Path, answer: bytes, exit_code: int) -> Definitions:
    name = project.display_path(file)
    if not answer.endswith(b"\n"):
        if exit_code == -signal.SIGALRM:
            return Definitions([], f"{name}: its import did not end within {IMPORT_LIMIT_S:g} s")
        how = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited with {exit_code}"
        return Definitions([], f"{name}: its import {how}")
    try:
        document = json.loads(answer)
        experiments = [Experiment.model_validate(each) for each in document["experiments"]]
        sweeps = [Sweep.model_validate(each) for each in document["sweeps"]]
    except ValidationError as error:  # made without validation
        return Definitions([], f"{name}: {_one_line(explain_spec_error(error))}")
    return Definitions(experiments, document["problem"], sweeps)
