"""Commands about W&B: sync, dashboard."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.errors import EXIT_FAILED
from gptlab.imports import importing
from gptlab.interface.options import JsonOption
from gptlab.interface.output import print_json, print_line


def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Default: mirrored runs that are incomplete in W&B.", autocompletion=completion.runs
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload whatever W&B is missing."""
    from dataclasses import asdict

    with importing():
        from gptlab.commands import sync
        from gptlab.tracking.run import find_run

    results = []
    for result in sync.sync_runs([find_run(run) for run in runs] if runs else None):
        print_line(sync.line(result), stderr=as_json or not result.synced)
        results.append(result)
    if as_json:
        print_json([asdict(result) for result in results])
    elif not results:
        print_line(sync.nothing_to_upload())
    if not all(result.synced for result in results):
        raise typer.Exit(EXIT_FAILED)


def dashboard(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Ids, unique prefixes of ids, or directories.", autocompletion=completion.runs
        ),
    ],
) -> None:
    """Open W&B's terminal dashboard of one or more runs."""
    with importing():
        from gptlab.commands import dashboard
        from gptlab.tracking.run import find_run

    selected = [find_run(run) for run in runs]
    raise typer.Exit(dashboard.show(selected, notice=lambda message: print_line(f"note: {message}", stderr=True)))
