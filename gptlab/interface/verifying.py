"""Commands that check results, also those of others: verify, bundle."""

from typing import Annotated, Literal

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import JsonOption, RunsArgument
from gptlab.interface.output import exit_with, heavy_imports, print_json


def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="A run's id, a unique prefix of one, or its directory; or a file of `gptlab bundle`.",
            autocompletion=completion.runs,
        ),
    ],
    first: Annotated[
        int | None,
        typer.Option("--from", min=0, metavar="STEP", help="Step of a resumable checkpoint. Default: the first step."),
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", min=0, metavar="STEP", help="Step to end at. Default: the last one.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="The text, if it has moved or is not in the bundle.", autocompletion=completion.texts),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--run", metavar="RUN", help="Only this run of the bundle. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run's files, replay it, and compare its metrics and checkpoints. Or check the runs of a bundle."""
    with importing():
        from gptlab.bundles.members import is_bundle
        from gptlab.tracking.run import find_run

    if is_bundle(target):
        _verify_bundle(target, only or [], first, last, text, as_json)
        return
    if only:
        raise BadInputError(f"--run is for bundles, and '{target}' is a run")
    found = find_run(target)

    with heavy_imports():
        from gptlab.commands import verify
        from gptlab.terminal.console import Console
        from gptlab.verification.verify import verify_run

    console = Console(stderr=as_json)
    result = verify_run(found, first=first, last=last, console=console, text=text)
    verify.render(result, found, console)
    if not_stored := verify.store(found, result):
        console.notice(f"the result is not stored: {not_stored}")
    exit_with(result, as_json)


def _verify_bundle(
    path: str, only: list[str], first: int | None, last: int | None, text: str | None, as_json: bool
) -> None:
    with heavy_imports():
        from gptlab.commands import verify_bundle
        from gptlab.terminal.console import Console

    request = verify_bundle.Request(only, first, last, text)
    exit_with(verify_bundle.verify_bundle(path, request, Console(stderr=as_json)), as_json)


def bundle(
    runs: RunsArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="File to write, such as results.tar.")],
    checkpoints: Annotated[
        Literal["last", "all", "none"],
        typer.Option(help="Checkpoints to pack. last: the newest, and the resumable one before it."),
    ] = "last",
    text: Annotated[bool, typer.Option("--text", help="Pack the texts, too. Default: their sha256 only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Pack runs into one file that others can verify."""
    with heavy_imports():
        from gptlab.commands import bundle
        from gptlab.terminal.console import Console

    packed = bundle.bundle_runs(runs, out, checkpoints, with_text=text, force=force)
    bundle.render(packed, Console(stderr=as_json))
    if as_json:
        print_json(packed.document())
