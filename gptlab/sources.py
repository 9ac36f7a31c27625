"""The source of this package and of the project's parts: which files belong together, and hashes of functions."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from gptlab.digests import canonical_json
from gptlab.errors import BadInputError

LAZY = frozenset({"gptlab/__init__.py"})
"""Files that import modules for their callers only."""
PROJECT = ""
"""The key of the folder in which other modules of the project may lie, such as one that a part imports."""
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def import_closure(modules: Iterable[str], folders: dict[str, Path]) -> dict[str, Path]:
    """Return the files that modules consist of and import, directly or not, anywhere in their code.

    Args:
        modules: Dotted names, such as `gptlab.training.step`.
        folders: The folder of each package to follow, and that of the project as `PROJECT`, in which other modules may
            lie. Other imports, such as of torch, are ignored.

    Returns:
        Paths by name relative to the folder's parent, such as `gptlab/training/step.py`, in alphabetical order.

    Raises:
        BadInputError: A file cannot be read or is not Python.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    known = set(waiting)
    while waiting:
        for name, path in _files_of(waiting.pop(), folders):
            if name in found:
                continue
            found[name] = path
            new = set() if name in LAZY else {*_imported_modules(name, path)} - known
            known |= new
            waiting += new
    return dict(sorted(found.items()))


def parse(path: Path) -> ast.Module:
    """Parse a file.

    Raises:
        BadInputError: It cannot be read or is not Python.
    """
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise BadInputError(f"{path} is not Python: {error}") from None


def function_hash(path: Path, qualified_name: str) -> str:
    """Return a hash of a function's syntax: comments, formatting and docstrings do not matter, names do.

    The hash does not depend on Python's version, unless the syntax itself is parsed differently.

    Args:
        path: The file.
        qualified_name: Such as `Settings.autocast`; `<locals>` is skipped. If there is no such definition, as for a
            lambda, the innermost one around it counts, and the whole file if there is none.

    Raises:
        BadInputError: See `parse`.
    """
    return _function_hash(parse(path), qualified_name)


@cache
def _function_hash(tree: ast.Module, qualified_name: str) -> str:
    node: ast.AST = tree
    for part in qualified_name.split("."):
        inner = [child for child in ast.walk(node) if isinstance(child, DEFINITIONS) and child.name == part]
        node = inner[0] if inner else node
    return hashlib.sha256(canonical_json(_plain(node)).encode()).hexdigest()[:16]


@cache
def _parse(source: bytes) -> ast.Module:
    return ast.parse(source)


def _plain(value: object) -> object:
    """Return a syntax tree as JSON, without empty fields: later versions of Python add some."""
    if isinstance(value, ast.AST):
        fields = {name: _plain(child) for name, child in ast.iter_fields(value) if child is not None and child != []}
        if isinstance(value, (*DEFINITIONS, ast.Module)) and ast.get_docstring(value, clean=False) is not None:
            fields["body"] = [_plain(child) for child in value.body[1:]]
        return [type(value).__name__, fields]
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return value if isinstance(value, str | int) else repr(value)


def _files_of(module: str, folders: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the files that importing a module executes: the packages' and its own."""
    package, *rest = module.split(".")
    if package not in folders and not (PROJECT in folders and package.isidentifier()):
        return
    folder, name = folders[package] if package in folders else folders[PROJECT] / package, package
    for part in [None, *rest]:
        if part is not None:
            folder, name = folder / part, f"{name}/{part}"
        if (folder / "__init__.py").is_file():
            yield f"{name}/__init__.py", folder / "__init__.py"
        elif folder.with_suffix(".py").is_file():
            yield f"{name}.py", folder.with_suffix(".py")


def _imported_modules(name: str, path: Path) -> tuple[str, ...]:
    """Return what a file may import; some of it may be attributes and not modules."""
    package = name.removesuffix(".py").removesuffix("/__init__").split("/")
    return _imports(parse(path), tuple(package if name.endswith("/__init__.py") else package[:-1]))


@cache
def _imports(tree: ast.Module, package: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)
