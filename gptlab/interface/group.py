"""What the program does before it calls a command."""

from typing import Annotated, Any

import typer
from typing_extensions import override

from gptlab.errors import BadInputError
from gptlab.interface.output import print_line
from gptlab.validation import suggest


class Commands(typer.core.TyperGroup):
    """A group of commands that prints its help if none is given, and names what exists if there is no such command."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if not (ctx.resilient_parsing or args[0].startswith("-") or args[0] in self.commands):
            raise BadInputError(f"No such command '{args[0]}'{suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print_line(f"gptlab {version('gptlab')}")
        raise typer.Exit


def program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print gptlab's version and exit."),
    ] = False,
) -> None:
    """Named GPT pretraining experiments on one .txt file."""
