"""Commands that free disk space: rm, gc."""

import sys
from typing import Annotated

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import JsonOption, RunsArgument
from gptlab.interface.output import confirmed, fail_with, print_json, print_line


def rm(
    runs: RunsArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Move runs to the trash (runs/.trash)."""
    with importing():
        from gptlab import project
        from gptlab.commands import run_selection, trash

    selected = trash.select_runs(runs)  # all of them, before one is moved
    has_pattern = any(map(run_selection.is_pattern, runs))
    if len(selected) > 1:
        for run in selected:
            print_line(trash.entry_of(run).line())
    warnings = trash.dependents(selected)
    for warning in warnings:
        print_line(warning)
    if warnings or (has_pattern and (len(selected) > 1 or not sys.stdin.isatty())):
        what = selected[0].id if len(selected) == 1 else f"these {len(selected)} runs"
        if not confirmed(f"move {what} to the trash?", yes, ["rm", *runs]):
            return
    for run in selected:
        print_line(f"moved to {project.display_path(run.move_to_trash())}")


def gc(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="With --optimizer or --snapshots: only these runs, as for rm.",
            autocompletion=completion.runs,
        ),
    ] = None,
    optimizer: Annotated[
        bool,
        typer.Option(
            "--optimizer",
            help="Remove the optimizer states of complete runs instead, which then cannot be extended.",
        ),
    ] = False,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Remove what train.snapshots kept of complete runs instead.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Free disk space: empty the trash, or bring runs down to their weights."""
    if optimizer or snapshots:
        _reduce(runs, optimizer, snapshots, yes, as_json)
        return
    if runs:
        raise BadInputError("RUN needs --optimizer or --snapshots; without them, gc empties the trash")
    with importing():
        from gptlab.commands import trash

    entries = trash.list_trash()
    for entry in entries:
        print_line(entry.line(), stderr=as_json)
    if not entries:
        print_line("the trash is empty", stderr=as_json)
    elif not confirmed(trash.question(entries), yes, ["gc"], stderr=as_json):
        entries = []
    removed, problems = trash.remove(entries)
    if as_json:
        print_json({"removed": removed})
    fail_with(problems)


def _reduce(runs: list[str] | None, optimizer: bool, snapshots: bool, yes: bool, as_json: bool) -> None:
    with importing():
        from gptlab.commands import reduce, trash
        from gptlab.tracking.run import all_runs

    kinds = reduce.Kinds(optimizer, snapshots)
    found = reduce.find(trash.select_runs(runs) if runs else all_runs(), kinds)
    for reduction in found:
        print_line(reduction.line(), stderr=as_json)
    if not found:
        print_line(f"there are no {kinds} to remove from complete runs", stderr=as_json)
    options = [f"--{name}" for name, chosen in {"optimizer": optimizer, "snapshots": snapshots}.items() if chosen]
    if found and not confirmed(reduce.question(found, kinds), yes, ["gc", *options, *(runs or [])], stderr=as_json):
        found = []
    result = reduce.reduce(found, kinds)
    if as_json:
        print_json(result.document())
    fail_with(result.problems)
