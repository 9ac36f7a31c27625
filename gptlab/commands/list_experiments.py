"""`gptlab list`: the experiments."""

import sys
from typing import Any

from gptlab import catalog


def list_experiments() -> list[dict[str, Any]]:
    """Return name, question and number of parameters of each experiment; none if its model has parts.

    Parts are not imported: `gptlab show` counts their parameters.
    """
    experiments = catalog.experiments().values()
    return [
        {"name": e.name, "why": e.why, "parameters": None if e.model.has_parts else e.model.parameters}
        for e in experiments
    ]


def render(experiments: list[dict[str, Any]]) -> None:
    """Print one line per experiment."""
    width = max((len(e["name"]) for e in experiments), default=0)
    for e in experiments:
        parameters = "with parts" if e["parameters"] is None else f"{e['parameters']:,}"
        sys.stdout.write(f"{e['name']:<{width}}  {parameters:>13}  {e['why']}\n")
