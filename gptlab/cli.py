"""The command line: parse arguments, call a function of `gptlab.commands`, exit."""

import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # searching all packages for plugins slows each start

import typer

from gptlab import completion
from gptlab.distributed.place import place
from gptlab.errors import EXIT_FAILED, BadInputError
from gptlab.failures import exit_code
from gptlab.interface import comparing, experiments, results, space, texts, tokens, training, verifying, wandb
from gptlab.interface.group import Commands, program
from gptlab.interface.output import heavy_imports
from gptlab.interrupts import STOP_SIGNALS
from gptlab.validation import suggest

# Heavy modules are imported inside the commands, so that `--help` and `list` start fast.
app = typer.Typer(
    name="gptlab",
    help="Named GPT pretraining experiments on one .txt file.",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.callback()(program)
app.command("list")(experiments.list_)
app.command()(experiments.show)
app.command()(experiments.plan)
app.command()(experiments.check)
app.command()(training.run)
app.command()(training.resume)
app.command()(comparing.sweep)
app.command()(comparing.decide)
app.command()(results.runs)
app.command()(results.watch)
app.command()(results.report)
app.command()(results.sample)
app.command("eval")(results.eval_)
app.command()(tokens.tokens)
app.command()(results.batch)
app.command()(results.export)
app.command()(verifying.verify)
app.command()(verifying.bundle)
app.command()(results.diff)
app.command("text")(texts.text_)
app.command()(wandb.sync)
app.command()(wandb.dashboard)
app.command()(space.rm)
app.command()(space.gc)

tokenizer_app = typer.Typer(cls=Commands, rich_markup_mode=None)
tokenizer_app.command("train")(texts.train_tokenizer)
app.add_typer(tokenizer_app, name="tokenizer", help="Make a tokenizer from a text.")


def main() -> NoReturn:
    """Run the command line and exit. Of several processes that torchrun has started, the others follow the first."""
    at = place()
    if at.is_follower:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process gets it too, and tells the others
        leave(exit_code(_follow))
    if not at.has_followers:
        sys.exit(exit_code(_run_app))
    code = EXIT_FAILED
    try:
        code = exit_code(_run_app)
    except BaseException:  # a bug
        traceback.print_exc()
    _end_followers(code)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process without the destructors of its connections, which may hang; see `workers.Group`."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # `exit_code` has reported it
            stream.flush()
    os._exit(code)


def _end_followers(code: int) -> None:
    from gptlab.distributed.board import post_end

    for number in STOP_SIGNALS:  # torchrun sends SIGTERM when another process ends before this one
        signal.signal(number, signal.SIG_IGN)
    post_end(code)


def _follow() -> int:
    with heavy_imports():
        from gptlab.commands import follow

    return follow.main()


@cache
def _program() -> Any:
    return typer.main.get_command(app)


def _run_app() -> int:
    command = _program()
    if completion.is_asked_for():
        return completion.answer(command)
    try:
        with command.make_context("gptlab", sys.argv[1:]) as context:  # `app()` would swallow a KeyboardInterrupt
            command.invoke(context)
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.TyperException as error:
        raise BadInputError(_explain(error)) from error
    except (typer.Abort, EOFError):  # Ctrl-C or Ctrl-D at a question
        raise KeyboardInterrupt from None
    return 0


def _explain(error: typer.TyperException) -> str:
    """Return the message of a usage error; for an unknown option, with a close one or the options that exist."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is None or context is None or not error.message.startswith("No such option"):
        return error.format_message()
    known = [name for parameter in context.command.get_params(context) for name in parameter.opts if name[:2] == "--"]
    return f"{error.message}{suggest(option, known)}"
