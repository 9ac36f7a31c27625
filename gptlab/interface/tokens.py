"""The command that looks at single tokens: tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import DeviceOption, JsonOption, StepOption
from gptlab.interface.output import heavy_imports, print_json

if TYPE_CHECKING:
    from gptlab.tracking.run import Run

MODEL_HELP = "A run, or RUN@STEP; or a directory of transformers' GPT-2."
MAX_TOKENS = 4096
"""Tokens on a page, which then has about 2 MB with two runs."""
MAX_DIGITS = 18
"""A step has no more digits."""


def tokens(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR", help=MODEL_HELP, autocompletion=completion.runs)],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN2|DIR2",
            help="Another one with the same tokenizer, to color by the difference.",
            autocompletion=completion.runs,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A named text or a file to show. Default: the run's validation split.", autocompletion=completion.texts
        ),
    ] = None,
    string: Annotated[str | None, typer.Option(help="A text to show, such as a sentence.")] = None,
    first: Annotated[
        int, typer.Option("--from-token", min=0, metavar="N", help="First token to show, counted from 0.")
    ] = 0,
    count: Annotated[int, typer.Option("--tokens", min=2, max=MAX_TOKENS, help="Number of tokens to show.")] = 512,
    step: StepOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="Write the page there. Default: tokens/ in the runs directory."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Color each token of a passage by its loss, or by the difference between two runs, on an HTML page."""
    if string is not None and text is not None:
        raise BadInputError("--text and --string exclude each other: --text takes a file, --string the text itself")
    with importing():
        from analysis import desktop, token_page

    sources = [_find(reference, step) for reference in (run, other) if reference is not None]
    page = token_page.page_path(out, [_name(source, at) for source, at in sources])

    with heavy_imports():
        from gptlab.commands import tokens
        from gptlab.terminal.console import Console

    console = Console(stderr=as_json)
    passage = tokens.read_passage(
        [tokens.open_reader(source, at) for source, at in sources],
        text=text,
        string=string,
        first=first,
        count=count,
        device=device,
        console=console,
    )
    document = passage.document()
    token_page.write(document, page)
    tokens.render(passage, page, console)
    if as_json:
        print_json({"page": str(page), **document})
    if open_page:
        desktop.open_or_explain(page)


def _find(reference: str, step: int | None) -> tuple[Run | Path, int | None]:
    """Return a run or a directory, and the step of the checkpoint.

    Raises:
        BadInputError: There is none; or `--step` was given for a directory.
    """
    from gptlab.huggingface.layout import find_directory
    from gptlab.tracking.run import find_run

    if directory := find_directory(reference, step):
        return directory, None
    name, at, digits = reference.rpartition("@")
    if at and digits.isdecimal() and digits.isascii() and len(digits) <= MAX_DIGITS:
        return find_run(name), int(digits)
    return find_run(reference), step


def _name(source: Run | Path, step: int | None) -> str:
    """The name of a run, with the step if it was chosen, or of a directory."""
    name = source.name if isinstance(source, Path) else source.id
    return name if step is None else f"{name}-step-{step}"
