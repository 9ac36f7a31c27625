"""`gptlab list`: the experiments and the sweeps."""

import sys
from typing import Any

from gptlab import catalog
from gptlab.terminal.text import plural


def list_experiments() -> list[dict[str, Any]]:
    """Return name, question and number of parameters of each experiment; none if its model has parts.

    Parts are not imported: `gptlab show` counts their parameters.
    """
    experiments = catalog.experiments().values()
    return [
        {"name": e.name, "why": e.why, "parameters": None if e.model.has_parts else e.model.parameters}
        for e in experiments
    ]


def list_sweeps() -> list[dict[str, Any]]:
    """Return name, question and number of runs of each sweep."""
    sweeps = catalog.load().sweeps.values()
    return [{"name": s.name, "why": s.why, "runs": len(s.runs) * len(s.seeds)} for s in sweeps]


def render(experiments: list[dict[str, Any]], sweeps: list[dict[str, Any]]) -> None:
    """Print one line per experiment and per sweep."""
    width = max((len(each["name"]) for each in experiments + sweeps), default=0)
    for e in experiments:
        parameters = "with parts" if e["parameters"] is None else f"{e['parameters']:,}"
        sys.stdout.write(f"{e['name']:<{width}}  {parameters:>13}  {e['why']}\n")
    for s in sweeps:
        sys.stdout.write(f"{s['name']:<{width}}  {plural(s['runs'], 'run'):>13}  {s['why']}\n")
