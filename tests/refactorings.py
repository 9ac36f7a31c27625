"""Edits of source code that change no result."""

import ast
import random
import re
from collections.abc import Callable, Collection

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def format_anew(source: str) -> str:
    """Drop comments and blank lines, and format everything in another style."""
    return ast.unparse(ast.parse(source))


def add_comments(source: str) -> str:
    """Write a comment above each line that begins a statement at the top level, and lengthen the docstring."""
    lines = re.sub(r"^(def |class |@)", r"# A comment.\n\1", source, flags=re.MULTILINE)
    return lines.replace('"""', '"""Edited. ', 1)


def rename_locals(source: str, keep: Collection[str]) -> str:
    """Rename the local variables of each function, except in functions with the names `keep`."""
    tree = ast.parse(source)
    for function in [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS) and node.name not in keep]:
        if any(
            isinstance(node, (*FUNCTIONS, ast.Lambda, ast.Global, ast.Nonlocal))
            for node in ast.walk(function)
            if node is not function
        ):
            continue  # names of enclosing scopes
        arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        stored = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in stored - arguments:
                node.id = f"renamed_{node.id}"
    return ast.unparse(tree)


def reorder_definitions(source: str) -> str:
    """Define the functions of the module and the methods of its classes in another order."""
    tree = ast.parse(source)
    used = _names_used_on_import(tree)
    shuffled = random.Random(1)
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
        movable = [
            place
            for place, node in enumerate(scope.body)
            if isinstance(node, FUNCTIONS) and not node.decorator_list and node.name not in used
        ]
        moved = [scope.body[place] for place in shuffled.sample(movable, len(movable))]
        for place, node in zip(movable, moved, strict=True):
            scope.body[place] = node
    tree.body.insert(1, ast.ImportFrom("__future__", [ast.alias("annotations")], 0))  # they may name what follows
    return ast.unparse(tree)


def _names_used_on_import(tree: ast.Module) -> set[str]:
    """Return the names that importing the module looks up."""
    looked_up: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            looked_up += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    looked_up += [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    return {node.id for root in looked_up for node in ast.walk(root) if isinstance(node, ast.Name)}


def kinds(keep: Collection[str]) -> dict[str, Callable[[str], str]]:
    """The refactorings by name."""
    return {
        "format anew": format_anew,
        "add comments": add_comments,
        "rename locals": lambda source: rename_locals(source, keep),
        "reorder definitions": reorder_definitions,
    }
