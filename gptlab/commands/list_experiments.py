"""`gptlab list`: the experiments."""

import sys
from typing import Any

from gptlab import catalog


def list_experiments() -> list[dict[str, Any]]:
    """Return name, question and number of parameters of each experiment."""
    experiments = catalog.experiments().values()
    return [{"name": e.name, "why": e.why, "parameters": e.model.parameters} for e in experiments]


def render(experiments: list[dict[str, Any]]) -> None:
    """Print one line per experiment."""
    width = max((len(e["name"]) for e in experiments), default=0)
    for e in experiments:
        sys.stdout.write(f"{e['name']:<{width}}  {e['parameters']:>13,}  {e['why']}\n")
