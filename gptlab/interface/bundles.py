"""Commands that let others check results: bundle."""

from typing import Annotated, Literal

import typer

from gptlab import completion
from gptlab.interface.options import JsonOption
from gptlab.interface.output import heavy_imports, print_json


def bundle(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Ids, unique prefixes of ids, directories, or 'tiny-*-s*'.",
            autocompletion=completion.runs,
        ),
    ],
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
