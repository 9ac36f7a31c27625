"""Commands about experiments: list, show, plan, check."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.imports import importing
from gptlab.interface.options import (
    MAX_COUNT,
    JsonOption,
    SetOption,
    ShardOption,
    StepsOption,
    TextOption,
    spec_changes,
)
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


def plan(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The experiment's name.", autocompletion=completion.experiments)
    ],
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, max=MAX_COUNT, help="Number of GPUs, or of processes on a CPU.")
    ] = None,
    shard: ShardOption = False,
    device: Annotated[
        str, typer.Option(help="Device: auto, cpu or cuda. Default: cuda with --gpus or if there is one.")
    ] = "auto",
    settings: SetOption = None,
    steps: StepsOption = None,
    text: TextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict what a run needs: memory, checkpoints, traffic between GPUs."""
    with importing():
        from gptlab import catalog

    experiment = catalog.find(name).with_changes(spec_changes(settings, text, steps))
    with heavy_imports():
        from gptlab.commands import plan

    made = plan.make_plan(experiment, gpus, device, shard=shard)
    if as_json:
        print_json(made.document())
    else:
        plan.render(made)


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
