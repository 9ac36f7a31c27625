"""Commands about experiments: list, show, check."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.imports import importing
from gptlab.interface.options import JsonOption
from gptlab.interface.output import exit_with, heavy_imports, print_json


def list_(as_json: JsonOption = False) -> None:
    """List the experiments and the sweeps."""
    with importing():
        from gptlab.commands import list_experiments

    experiments = list_experiments.list_experiments()
    if as_json:
        print_json(experiments)
    else:
        list_experiments.render(experiments, list_experiments.list_sweeps())


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME-or-RUN",
            help="An experiment's name, or a run.",
            autocompletion=completion.experiments_and_runs,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show an experiment or a run in full."""
    with heavy_imports():
        from gptlab.commands import show

    description = show.describe(name)
    if as_json:
        print_json(description.document())
    else:
        show.render(description)


def check(
    part: Annotated[str, typer.Argument(metavar="PART", help="A part, such as experiments.parts.swiglu:SwiGLU.")],
    field: Annotated[
        str | None, typer.Option(help="The field that it is for. Default: that of the experiments that use it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a part of a model or of its training."""
    with heavy_imports():
        from gptlab.commands import check

    result = check.check(part, field)
    if not as_json:
        check.render(result)
    exit_with(result, as_json)
