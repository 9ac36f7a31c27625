"""One part of the benchmark, in a process of its own: parts leave memory, processes and settings behind."""

import importlib
import traceback

from _table import Growth, Row


def measure(part: str) -> tuple[list[Row | Growth], str]:
    """What a part measured, and the error that ended it, if one did."""
    measured: list[Row | Growth] = []
    try:
        measured.extend(importlib.import_module(part).rows())  # what came before an error is kept
    except Exception:
        return measured, traceback.format_exc()
    return measured, ""
