"""The text `pandas-docs`: every docstring of the installed pandas, its tests left out.

Technical English with a structure that a model learns to imitate early, on every machine, without a download.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gptlab.errors import BadInputError


def pandas_docs() -> str:
    """The docstrings in sorted file order and source order, a blank line between them."""
    spec = importlib.util.find_spec("pandas")
    if spec is None or not spec.submodule_search_locations:
        raise BadInputError("the text 'pandas-docs' is made from pandas, which is not installed: pip install pandas")
    package = Path(spec.submodule_search_locations[0])
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    texts = [files[name].read_text(encoding="utf-8") for name in sorted(files) if "tests" not in name.split("/")]
    return "\n\n".join(docstring for text in texts for docstring in _docstrings(ast.parse(text))) + "\n"


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        docstring = ast.get_docstring(node)
        if docstring is not None:
            yield docstring
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)
