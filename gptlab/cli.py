"""The commands, a few lines each. What is heavy is imported inside them, so that `--help` and `list` answer at once."""

import gc as garbage
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for some in every package takes a while

import typer

from gptlab.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_SIGINT, BadInputError, GptlabError

MAX_TAG_LENGTH = 64  # W&B takes no longer ones
MAX_COUNT = 10_000

app = typer.Typer(
    name="gptlab",
    help="Named GPT pretraining experiments on one .txt file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class WandbMode(StrEnum):
    """Where the run is mirrored."""

    online = "online"
    offline = "offline"
    off = "off"


class Artifacts(StrEnum):
    """Which checkpoint W&B gets."""

    best = "best"
    final = "final"


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, a unique prefix of one, or its directory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
WandbOption = Annotated[
    WandbMode | None, typer.Option(help="Default: online with a key and a server that answers, else offline.")
]
ArtifactsOption = Annotated[
    Artifacts | None, typer.Option(help="Give W&B this checkpoint when the attempt ends; none by default.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, max=10**8, help="Optimizer steps in all; more than done extends the run.")
]
DeterministicOption = Annotated[bool, typer.Option("--deterministic", help="Bitwise equal runs on a GPU too; slower.")]
StepOption = Annotated[int | None, typer.Option(min=0, help="A checkpoint's step; the newest by default.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the experiments: name, parameters, question."""
    from gptlab import catalog

    experiments = catalog.experiments().values()
    if as_json:
        _print_json([{"name": e.name, "why": e.why, "parameters": e.model.parameters} for e in experiments])
        return
    width = max((len(e.name) for e in experiments), default=0)
    for e in experiments:
        typer.echo(f"{e.name:<{width}}  {e.model.parameters:>13,}  {e.why}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME-or-RUN", help="An experiment's name, or a run.")],
    as_json: JsonOption = False,
) -> None:
    """Show a spec with its identity and its architecture, and how a run went."""
    from gptlab import describe

    description = describe.describe(name)
    if as_json:
        _print_json(description.document())
    else:
        describe.render(description)


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment in experiments/.")],
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of weights, order and dropout.")] = 0,
    steps: StepsOption = None,
    text: Annotated[str | None, typer.Option(help="A named text or the path of a .txt.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the spec; repeatable.")
    ] = None,
    device: DeviceOption = "auto",
    deterministic: DeterministicOption = False,
    wandb: WandbOption = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="A tag for W&B and reports; repeatable.")] = None,
    notes: Annotated[str, typer.Option(help="A remark kept with this attempt.")] = "",
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN@STEP", help="Start from the weights of another run.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move the old run to the trash and start again.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Record where the time of a few steps goes.")] = False,
    artifacts: ArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment, go on with it, or extend it."""
    from gptlab import catalog
    from gptlab.spec import parse_settings

    for tag in tags or ():
        if not (0 < len(tag) <= MAX_TAG_LENGTH and tag.isprintable()):
            raise BadInputError(f"--tag wants 1 to {MAX_TAG_LENGTH} printable characters, not {tag!r}")
    changes: dict[str, Any] = parse_settings(settings or [])
    changes |= {} if text is None else {"data.text": text}
    changes |= {} if steps is None else {"train.steps": steps}
    experiment = catalog.find(name).with_changes(changes)

    with _many_imports():
        from gptlab.console import Console
        from gptlab.training import attempt, initial

    options = attempt.Options(
        device=device,
        deterministic=deterministic,
        wandb=wandb.value if wandb else None,
        tags=tuple(tags or ()),
        notes=notes,
        fresh=fresh,
        profile=profile,
        artifacts=artifacts.value if artifacts else None,
    )
    parent = initial.weights_of(from_) if from_ else None
    _finish(attempt.start(experiment, seed, options, Console(stderr=as_json), parent), as_json)


@app.command()
def resume(
    run: RunArgument,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    deterministic: DeterministicOption = False,
    wandb: WandbOption = None,
    artifacts: ArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run from its own stored spec."""
    from gptlab.tracking.run import find

    found = find(run)

    with _many_imports():
        from gptlab.console import Console
        from gptlab.training import attempt

    options = attempt.Options(
        steps=steps,
        device=device,
        deterministic=deterministic,
        wandb=wandb.value if wandb else None,
        artifacts=artifacts.value if artifacts else None,
    )
    _finish(attempt.resume(found, options, Console(stderr=as_json)), as_json)


@app.command()
def runs(as_json: JsonOption = False) -> None:
    """List the runs: status, steps, losses, age and training time."""
    from gptlab.tracking.run import Run, all_runs, each

    if as_json:
        _print_json(list(each(Run.summary, all_runs())))
        return

    from gptlab import listing

    lines = list(each(listing.line, all_runs()))
    if lines:
        listing.render(lines)
    else:
        typer.echo("no runs yet; start one with: make exp NAME=tiny")


@app.command()
def sample(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Where the text begins.")] = "The",
    count: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Texts, each another continuation.")] = 1,
    tokens: Annotated[int | None, typer.Option(min=1, help="New tokens of each; by default all that fit.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0 for all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same texts.")] = 0,
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run's model continue a prompt."""
    from gptlab.tracking.run import find

    found = find(run)

    with _many_imports():
        import gptlab
        from gptlab.console import printable
        from gptlab.model.sample import samples

    model, _ = gptlab.load(str(found.directory), step)
    texts = samples(
        model,
        prompt,
        count,
        trained_length=found.record.spec.train.sequence_length,
        max_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    if as_json:
        _print_json({"run": found.id, "prompt": prompt, "texts": texts})
        return
    for number, text in enumerate(texts, start=1):
        if count > 1:
            typer.echo(f"{'' if number == 1 else chr(10)}— {number} of {count} —")
        typer.echo(printable(prompt + text))


@app.command("eval")
def eval_(
    run: RunArgument,
    text: Annotated[str | None, typer.Option(help="Another text, judged as a whole.")] = None,
    step: StepOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Judge a run on all of its validation text."""
    from gptlab.tracking.run import find

    found = find(run)

    with _many_imports():
        from gptlab.console import Console
        from gptlab.training import judge

    document = judge.judge(found, step=step, text=text, device=device, console=Console(stderr=as_json))
    if as_json:
        _print_json(document)


@app.command()
def diff(
    run: RunArgument,
    other: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Another run; without one, what it would be here, now.")
    ] = None,
    patch: Annotated[bool, typer.Option("--patch", help="Also print the difference in code, line by line.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two runs, or between a run and the working tree."""
    from gptlab import differences
    from gptlab.console import Console, printable
    from gptlab.tracking.run import find

    a = find(run)
    b = differences.side_of(find(other)) if other else differences.side_here(a)
    comparison = differences.compare(differences.side_of(a), b)
    if as_json:
        _print_json(comparison.document())
    else:
        differences.render(comparison, Console())
    if patch:
        typer.echo(printable(comparison.patch.decode(errors="replace")), nl=False, err=as_json)


@app.command()
def sync(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="By default every run that W&B lacks something of.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring W&B up to date with runs, whatever became of earlier attempts to."""
    from gptlab.mirror.sync import pending_runs, sync_run
    from gptlab.tracking.run import find

    results = []
    for found in [find(run) for run in runs] if runs else pending_runs():
        result = sync_run(found)
        typer.echo(result.line(), err=as_json or not result.synced)
        results.append(result)
    if as_json:
        _print_json([asdict(result) for result in results])
    elif not results:
        typer.echo("W&B has everything of the runs that it was given")
    if not all(result.synced for result in results):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def dashboard(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids, unique prefixes of them, or directories.")],
) -> None:
    """Open W&B's terminal dashboard of one run or several."""
    from gptlab.commands import dashboard
    from gptlab.tracking.run import find

    code = dashboard.show([find(run) for run in runs], notice=lambda message: typer.echo(f"note: {message}", err=True))
    raise typer.Exit(code)


@app.command()
def rm(run: RunArgument) -> None:
    """Move a run to the trash, runs/.trash."""
    from gptlab import project
    from gptlab.tracking.run import find

    typer.echo(f"moved to {project.shown(find(run).move_to_trash())}")


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Empty the trash, after showing what goes."""
    from gptlab.console import printable
    from gptlab.tracking.trash import discarded

    entries = discarded()
    for entry in entries:
        typer.echo(f"{entry.bytes / 2**20:>10,.1f} MiB  {printable(entry.path.name)}", err=as_json)
    if not entries:
        typer.echo("the trash is empty", err=as_json)
    elif not yes:
        if not sys.stdin.isatty():
            raise BadInputError(
                "nobody is there to be asked, so nothing was removed; to empty the trash: gptlab gc --yes"
            )
        total = sum(entry.bytes for entry in entries)
        if not typer.confirm(f"remove {len(entries)}, {total / 2**20:,.1f} MiB, for good?", err=as_json):
            entries = []
    for entry in entries:
        entry.remove()
    if as_json:
        _print_json({"removed": [entry.path.name for entry in entries]})


def main() -> None:
    """Run the command line; every expected error is one line on stderr."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message(), EXIT_BAD_INPUT)
    except GptlabError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", EXIT_SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `gptlab runs | head` needs no message
        sys.exit(EXIT_FAILED)
    except OSError as error:  # a full disk, a place that cannot be written
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", EXIT_FAILED)
    sys.exit(code or 0)


@contextmanager
def _many_imports() -> Iterator[None]:
    """A context for what is heavy: garbage is not looked for meanwhile, nor later among what was imported.

    There is none, and looking takes a tenth of the time.
    """
    garbage.disable()
    try:
        yield
    finally:
        garbage.freeze()
        garbage.enable()


def _finish(result: Any, as_json: bool) -> None:
    if as_json:
        _print_json(result.document())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """The document with null for numbers that JSON cannot carry."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
