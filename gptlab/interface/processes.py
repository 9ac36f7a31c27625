"""`--nproc`: whether a command runs in this process, or in several that it starts."""

import sys
from typing import TYPE_CHECKING

import typer

from gptlab.distributed.nodes import nodes
from gptlab.distributed.place import place
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.output import heavy_imports

if TYPE_CHECKING:  # importing pydantic takes longer than printing a help
    from gptlab.spec import Experiment


def check_single(command: str) -> None:
    """Check that this is the only process of a command that starts runs by itself.

    Raises:
        BadInputError: torchrun has started several.
    """
    if place().size > 1:
        raise BadInputError(f"`gptlab {command}` starts the processes of its runs itself; call it without torchrun")


def launch_processes(experiment: "Experiment", nproc: int | None, shard: bool) -> None:
    """Run this command in several processes and exit with their code, unless this is one of them or there is only one.

    Raises:
        BadInputError: Several processes cannot train the experiment, or torchrun has started another number of them.
    """
    with importing():
        from gptlab.distributed.division import check_division

    started, several = place().size, nodes()
    wanted = (nproc or 1) * (several.count if several else 1)
    check_division(experiment, started if nproc is None and started > 1 else wanted, shard=shard)
    if started > 1:
        if nproc is not None and wanted != started:
            raise BadInputError(f"torchrun has started {started} processes, not {wanted}; leave --nproc out")
        return
    if wanted == 1:
        return
    with heavy_imports():
        from gptlab.commands.launch import launch

    raise typer.Exit(launch(nproc or 1, sys.argv[1:], several))
