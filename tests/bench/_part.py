"""One part of the benchmark. Each runs in a new process, because parts change settings and leave memory behind."""

import importlib
import traceback

from _table import Growth, Row


def measure(part: str) -> tuple[list[Row | Growth], str]:
    """The rows of a part, and the traceback of its error or an empty string."""
    measured: list[Row | Growth] = []
    try:
        measured.extend(importlib.import_module(part).rows())  # keeps the rows before an error
    except Exception:
        return measured, traceback.format_exc()
    return measured, ""
