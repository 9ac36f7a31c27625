"""Commands that make texts and tokenizers: text, tokenizer."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.imports import importing
from gptlab.interface.options import JsonOption
from gptlab.interface.output import print_json


def text_(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Texts, .gz and .jsonl files, and folders of them.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The .txt to write.")],
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of files without a byte-order mark. Default: UTF-8.")
    ] = None,
    separator: Annotated[str, typer.Option(help="Put between two documents; for a blank line: '\\n\\n'.")] = "\\n",
    text_key: Annotated[str, typer.Option(metavar="KEY", help="Key of the text in a .jsonl file's lines.")] = "text",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one .txt out of files and folders, in sorted order."""
    with importing():
        from gptlab.commands import make_text
        from gptlab.terminal.console import Console

    made = make_text.make(sources, out, encoding=encoding, separator=separator, text_key=text_key, replace=force)
    make_text.render(made, Console(stderr=as_json))
    if as_json:
        print_json(made.document())


def train_tokenizer(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="A named text or the path of a .txt file.", autocompletion=completion.texts
        ),
    ],
    vocab_size: Annotated[int, typer.Option(min=257, max=65_536, help="Number of tokens.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where to write it. Default: experiments/tokenizers/TEXT-TOKENS.json."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a byte-level BPE tokenizer on the training part of a text."""
    with importing():
        from gptlab.commands import train_tokenizer
        from gptlab.terminal.console import Console

    result = train_tokenizer.train(text, vocab_size, out)
    train_tokenizer.render(result, Console(stderr=as_json))
    if as_json:
        print_json(result.document())
