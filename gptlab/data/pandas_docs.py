"""The text `pandas-docs`: all docstrings of the installed pandas except those of its tests.

Technical English with a regular structure that a model picks up early, available on every machine without a download.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gptlab.errors import BadInputError


def pandas_docs() -> str:
    """The docstrings, by sorted file name and in source order, separated by blank lines."""
    spec = importlib.util.find_spec("pandas")
    if spec is None or not spec.submodule_search_locations:
        raise BadInputError("the text 'pandas-docs' needs pandas: pip install pandas")
    package = Path(spec.submodule_search_locations[0])
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    sources = [files[name].read_text(encoding="utf-8") for name in sorted(files) if "tests" not in name.split("/")]
    return "\n\n".join(docstring for source in sources for docstring in _docstrings(ast.parse(source))) + "\n"


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        docstring = ast.get_docstring(node)
        if docstring is not None:
            yield docstring
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)
