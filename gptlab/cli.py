"""The command line: parse arguments, call a function of `gptlab.commands`, exit.

Heavy modules are imported inside the commands, so that `--help` and `list` start fast.
"""

import gc as garbage
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # searching all packages for plugins slows each start

import typer
from typing_extensions import override

from gptlab import completion
from gptlab.errors import EXIT_FAILED, BadInputError
from gptlab.failures import exit_code
from gptlab.imports import importing
from gptlab.terminal.text import printable
from gptlab.validation import MAX_TAG_LENGTH, suggest

MAX_COUNT = 10_000


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


app = typer.Typer(
    name="gptlab",
    help="Named GPT pretraining experiments on one .txt file.",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, a unique prefix of one, or its directory.", autocompletion=completion.runs
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and everything else on stderr.")
]
DeviceOption = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")]
WandbOption = Annotated[
    Literal["online", "offline", "off"] | None,
    typer.Option(help="Where to log. Default: online if there is an API key and the server responds, else offline."),
]
ArtifactsOption = Annotated[
    Literal["best", "final"] | None,
    typer.Option(help="Upload the best or the final checkpoint to W&B when training ends."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**8,
        help="Total number of optimizer steps; more extends the run. Default: as in the spec.",
    ),
]
TextOption = Annotated[
    str | None, typer.Option(help="A named text or the path of a .txt file.", autocompletion=completion.texts)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a field of the spec; `gptlab show NAME` lists them. Repeatable."
    ),
]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", help="Tag for W&B and reports. Repeatable.")]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="Bitwise reproducible results on a GPU too; slower.")
]
CompileOption = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the model's blocks. Default: on CUDA, with a C compiler."),
]
CaptureOption = Annotated[
    bool | None,
    typer.Option("--capture/--no-capture", help="Capture the step as a CUDA graph. Default: on CUDA."),
]
StepOption = Annotated[int | None, typer.Option(min=0, help="Step of a checkpoint. Default: the newest.")]


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        _print_line(f"gptlab {version('gptlab')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print gptlab's version and exit."),
    ] = False,
) -> None:
    """Named GPT pretraining experiments on one .txt file."""


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the experiments and the sweeps."""
    with importing():
        from gptlab.commands import list_experiments

    experiments = list_experiments.list_experiments()
    if as_json:
        _print_json(experiments)
    else:
        list_experiments.render(experiments, list_experiments.list_sweeps())


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME-or-RUN",
            help="An experiment's name, or a run.",
            autocompletion=completion.experiments_and_runs,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show an experiment or a run in full."""
    with _heavy_imports():
        from gptlab.commands import show

    description = show.describe(name)
    if as_json:
        _print_json(description.document())
    else:
        show.render(description)


@app.command()
def check(
    part: Annotated[str, typer.Argument(metavar="PART", help="A part, such as experiments.parts.swiglu:SwiGLU.")],
    field: Annotated[
        str | None, typer.Option(help="The field that it is for. Default: that of the experiments that use it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a part of a model or of its training."""
    with _heavy_imports():
        from gptlab.commands import check

    result = check.check(part, field)
    if not as_json:
        check.render(result)
    _exit_with(result, as_json)


@app.command()
def run(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="An experiment in experiments/.", autocompletion=completion.experiments),
    ],
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="Seed for initialization, data order and dropout. Default: 0, or that of the run to branch from.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="SEEDS", help="Several seeds, one run after the other: 0,1,2 or 0-4."),
    ] = None,
    steps: StepsOption = None,
    text: TextOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    deterministic: DeterministicOption = False,
    compile_: CompileOption = None,
    capture: CaptureOption = None,
    wandb: WandbOption = None,
    tags: TagsOption = None,
    notes: Annotated[str, typer.Option(help="Note to store with this attempt.")] = "",
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Start from the weights of another run. Default step: the newest.",
            autocompletion=completion.runs,
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[@STEP]",
            help="Continue from the weights and the optimizer state of another run. Default step: the newest.",
            autocompletion=completion.runs,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move the existing run to the trash and start again.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a profile of a few steps to the run.")] = False,
    artifacts: ArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start, resume or extend the run of an experiment."""
    with importing():
        from gptlab import catalog
        from gptlab.commands.seeds import parse_seeds

    _check_tags(tags)
    if notes.encode(errors="replace") != notes.encode(errors="surrogateescape"):
        raise BadInputError(f"--notes must be UTF-8 text, not {notes!r}; check the terminal's encoding and the locale")
    if from_ is not None and branch is not None:
        raise BadInputError("--from and --branch exclude each other: --from takes the weights only, --branch all state")
    if seeds is not None and seed is not None:
        raise BadInputError("--seed and --seeds exclude each other")
    if seeds is not None and branch is not None:
        raise BadInputError("--seeds and --branch exclude each other: a branch has the seed of its parent")
    several = parse_seeds(seeds) if seeds is not None else []
    experiment = catalog.find(name).with_changes(_changes(settings, text, steps))

    with _heavy_imports():
        from gptlab.commands.run import Options, run_experiment
        from gptlab.commands.run_seeds import render, run_seeds
        from gptlab.terminal.console import Console
        from gptlab.training.initial import find_branch, find_initial_weights

    options = Options(
        device=device,
        deterministic=deterministic,
        compile=compile_,
        capture=capture,
        wandb=wandb,
        tags=tuple(tags or ()),
        notes=notes,
        fresh=fresh,
        profile=profile,
        artifacts=artifacts,
    )
    if several:
        weights = find_initial_weights(from_) if from_ is not None else None
        outcome = run_seeds(experiment, several, options, weights, stderr=as_json)
        render(outcome, experiment, Console(stderr=as_json))
        _exit_with(outcome, as_json)
        return
    branch_point = find_branch(branch, experiment) if branch is not None else None
    parent = find_initial_weights(from_) if from_ is not None else branch_point
    if seed is None:
        seed = branch_point.seed if branch_point else 0
    _exit_with(run_experiment(experiment, seed, options, Console(stderr=as_json), parent), as_json)


def _check_tags(tags: list[str] | None) -> None:
    for tag in tags or ():
        if not (0 < len(tag) <= MAX_TAG_LENGTH and tag.isprintable()):
            raise BadInputError(f"--tag must have 1 to {MAX_TAG_LENGTH} printable characters, not {tag!r}")


@app.command()
def decide(
    reference: Annotated[
        str,
        typer.Argument(metavar="A", help="The experiment to compare with.", autocompletion=completion.experiments),
    ],
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="B", help="The experiment that is better, worse or equal.", autocompletion=completion.experiments
        ),
    ],
    margin: Annotated[
        float | None, typer.Option(help="Differences below it are of no interest, in nats/token. Required.")
    ] = None,
    max_seeds: Annotated[
        int | None, typer.Option(help="Budget, fixed at the first look: 3 to 50 seeds. Default: 20.")
    ] = None,
    comparisons: Annotated[
        int | None, typer.Option(help="Number of decisions under one headline, which share the error. Default: 1.")
    ] = None,
    steps: StepsOption = None,
    text: TextOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    wandb: WandbOption = None,
    tags: TagsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add seeds to two experiments until it is decided which one is better, or that they are equal."""
    with importing():
        from gptlab import catalog
        from gptlab.sequential import design

    if margin is None:
        raise BadInputError(
            "--margin is required: differences below it are of no interest, in nats/token, such as --margin 0.02"
        )
    design(margin, max_seeds, comparisons)  # checks them
    _check_tags(tags)
    changes = _changes(settings, text, steps)
    first, second = (catalog.find(name).with_changes(changes) for name in (reference, experiment))

    with _heavy_imports():
        from gptlab.commands import decide
        from gptlab.commands.run import Options
        from gptlab.terminal.console import Console

    options = Options(device=device, wandb=wandb, tags=tuple(tags or ()), next_commands=False)
    request = decide.Request(margin, max_seeds, comparisons)
    outcome = decide.decide(first, second, request, options, stderr=as_json)
    decide.render(outcome, Console(stderr=as_json))
    _exit_with(outcome, as_json)


def _changes(settings: list[str] | None, text: str | None, steps: int | None) -> dict[str, Any]:
    """Return the fields of the spec that the options change, by dotted key."""
    from gptlab.spec import parse_settings

    changes: dict[str, Any] = parse_settings(settings or [])
    changes |= {} if text is None else {"data.text": text}
    return changes | ({} if steps is None else {"train.steps": steps})


@app.command()
def sweep(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="A sweep in experiments/, or several experiments.",
            autocompletion=completion.sweeps_and_experiments,
        ),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(metavar="SEEDS", help="Seeds of each point: 0,1,2 or 0-4. Default: those of the sweep, or 0."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Processes at once, which share the cores or the GPU.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would run, and how long it takes.")
    ] = False,
    steps: StepsOption = None,
    text: TextOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    wandb: WandbOption = None,
    tags: TagsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start or resume all runs of a sweep that are not complete."""
    with importing():
        from gptlab.commands.seeds import parse_seeds

    _check_tags(tags)
    several = parse_seeds(seeds) if seeds is not None else None
    changes = _changes(settings, text, steps)

    with _heavy_imports():
        from gptlab.commands.sweep import DryRun, Options, run_sweep
        from gptlab.commands.sweep_plan import plan_sweep
        from gptlab.commands.sweep_view import render
        from gptlab.mirror.modes import check_wandb_mode
        from gptlab.terminal.console import Console

    if wandb is None:
        check_wandb_mode()
    console = Console(stderr=as_json)
    planned = plan_sweep(names, several, changes, device)
    options = Options(jobs, device, wandb, tuple(tags or ()))
    if dry_run:
        would_run = DryRun(planned, options)
        if not as_json:
            would_run.render(console)
        _exit_with(would_run, as_json)
        return
    results = run_sweep(planned, options, console)
    render(results, console)
    _exit_with(results, as_json)


@app.command()
def resume(
    run: RunArgument,
    steps: StepsOption = None,
    text: Annotated[
        str | None,
        typer.Option(help="The run's text, if it has moved: the same bytes.", autocompletion=completion.texts),
    ] = None,
    accept_code_change: Annotated[
        bool, typer.Option("--accept-code-change", help="Resume even if the code computes something else now.")
    ] = False,
    device: DeviceOption = "auto",
    deterministic: DeterministicOption = False,
    compile_: CompileOption = None,
    capture: CaptureOption = None,
    wandb: WandbOption = None,
    artifacts: ArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resume or extend a run from its stored spec."""
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)

    with _heavy_imports():
        from gptlab.commands.run import Options, resume_run
        from gptlab.terminal.console import Console

    options = Options(
        steps=steps,
        text=text,
        accept_code_change=accept_code_change,
        device=device,
        deterministic=deterministic,
        compile=compile_,
        capture=capture,
        wandb=wandb,
        artifacts=artifacts,
    )
    _exit_with(resume_run(found, options, Console(stderr=as_json)), as_json)


@app.command()
def runs(
    name: Annotated[
        str | None, typer.Option(help="Only runs of this experiment; * and ? match any characters, as in 'tiny*'.")
    ] = None,
    status: Annotated[
        Literal["running", "complete", "interrupted", "diverged", "failed"] | None,
        typer.Option(help="Only runs with this status."),
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Only runs with this tag. Repeatable.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this value of a field of the spec. Repeatable."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Sort by a column, such as val_loss, or by a field. Default: by name."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs: what differs between them, status, loss, age and disk space."""
    with importing():
        from gptlab.commands import list_runs
        from gptlab.commands.run_filters import Filters
        from gptlab.spec import parse_conditions

    filters = Filters(name, status, tuple(tags or ()), parse_conditions(where or [], "--where"))
    summaries = list_runs.list_runs(filters, sort)
    if as_json:
        _print_json([summary.facts for summary in summaries])
    else:
        list_runs.render(summaries, tree=sort is None, filtered=filters.active)
        list_runs.render_space(summaries)


@app.command()
def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids, unique prefixes of ids, directories, or 'tiny-*-s*'. Default: all runs in training.",
            autocompletion=completion.runs,
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two looks at the runs.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Watch runs while they train: step, loss curve, tokens/s, ETA and newest sample. Without a terminal, once."""
    with importing():
        from gptlab.commands import watch
        from gptlab.terminal.console import Console

    watch.check_interval(interval)
    watched = watch.Watch(runs or [])
    if as_json:
        _print_json(watched.document())
    else:
        watch.show(watched, interval, Console())


@app.command()
def report(
    name: Annotated[
        str | None, typer.Option(help="Only runs of this experiment; * and ? match any characters, as in 'tiny*'.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="STEP", help="Compare at this step. Default: the largest common one.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare with this experiment or run. Default: the oldest one.",
            autocompletion=completion.experiments_and_runs,
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Write there. Default: the runs directory.")] = None,
    table: Annotated[
        str | None, typer.Option(metavar="markdown|latex", help="Only print the comparison as a table.")
    ] = None,
    figures: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write figures for papers there, as SVG and PNG.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Compare the runs: which experiment is best, and whether that could be chance."""
    # BLAS's threads wait in a loop: on a busy machine, reading weights took seven times the CPU time with two of them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with importing("pandas"):
        from analysis import report

    report.write(
        report.Options(
            name=name, tag=tag, at=at, against=against, out=out, table=table, figures=figures, open_page=open_page
        )
    )


@app.command()
def sample(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "The",
    count: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Number of different continuations.")] = 1,
    tokens: Annotated[int | None, typer.Option(min=1, help="New tokens per text. Default: as many as fit.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Divides the logits; 0 takes the most likely token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 for all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed for sampling.")] = 0,
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with a run's model."""
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)

    with _heavy_imports():
        from gptlab.commands import sample

    result = sample.sample(
        found, step, prompt, count, max_tokens=tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    if as_json:
        _print_json(result.document())
    else:
        sample.render(result)


@app.command("eval")
def eval_(
    run: RunArgument,
    text: Annotated[
        str | None,
        typer.Option(
            help="Another text of any length to evaluate on; or the run's own, if it has moved.",
            autocompletion=completion.texts,
        ),
    ] = None,
    string: Annotated[str | None, typer.Option(help="A text to evaluate on, such as a sentence.")] = None,
    step: StepOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on the full validation split, or on another text."""
    if string is not None and text is not None:
        raise BadInputError("--text and --string exclude each other: --text takes a file, --string the text itself")
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)

    with _heavy_imports():
        from gptlab.commands import evaluate
        from gptlab.terminal.console import Console

    console = Console(stderr=as_json)
    result = evaluate.evaluate_run(found, step=step, text=text, device=device, console=console, string=string)
    evaluate.render(result, console)
    if as_json:
        _print_json(result.document())


@app.command()
def diff(
    run: RunArgument,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER",
            help="Another run. Default: the experiment in the working tree.",
            autocompletion=completion.runs,
        ),
    ] = None,
    patch: Annotated[bool, typer.Option("--patch", help="Also print the differences in code as a patch.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two runs."""
    with importing():
        from gptlab.commands import diff
        from gptlab.tracking.run import find_run

    found = find_run(run)
    other_side = diff.recorded_side(find_run(other)) if other else diff.current_side(found)
    comparison = diff.compare(diff.recorded_side(found), other_side)
    if as_json:
        _print_json(comparison.document())
    else:
        diff.render(comparison)
    if patch:
        (sys.stderr if as_json else sys.stdout).write(comparison.printable_patch())


@app.command("text")
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
        _print_json(made.document())


tokenizer_app = typer.Typer(cls=Commands, rich_markup_mode=None)
app.add_typer(tokenizer_app, name="tokenizer", help="Make a tokenizer from a text.")


@tokenizer_app.command("train")
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
        _print_json(result.document())


@app.command()
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
        _print_line(sync.line(result), stderr=as_json or not result.synced)
        results.append(result)
    if as_json:
        _print_json([asdict(result) for result in results])
    elif not results:
        _print_line(sync.nothing_to_upload())
    if not all(result.synced for result in results):
        raise typer.Exit(EXIT_FAILED)


@app.command()
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
    raise typer.Exit(dashboard.show(selected, notice=lambda message: _print_line(f"note: {message}", stderr=True)))


@app.command()
def rm(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Ids, unique prefixes of ids, directories, or 'tiny-*-s*'.",
            autocompletion=completion.runs,
        ),
    ],
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
            _print_line(trash.entry_of(run).line())
    warnings = trash.dependents(selected)
    for warning in warnings:
        _print_line(warning)
    if warnings or (has_pattern and (len(selected) > 1 or not sys.stdin.isatty())):
        what = selected[0].id if len(selected) == 1 else f"these {len(selected)} runs"
        if not _confirmed(f"move {what} to the trash?", yes, ["rm", *runs]):
            return
    for run in selected:
        _print_line(f"moved to {project.display_path(run.move_to_trash())}")


@app.command()
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
        _print_line(entry.line(), stderr=as_json)
    if not entries:
        _print_line("the trash is empty", stderr=as_json)
    elif not _confirmed(trash.question(entries), yes, ["gc"], stderr=as_json):
        entries = []
    removed, problems = trash.remove(entries)
    if as_json:
        _print_json({"removed": removed})
    _fail_with(problems)


def _reduce(runs: list[str] | None, optimizer: bool, snapshots: bool, yes: bool, as_json: bool) -> None:
    with importing():
        from gptlab.commands import reduce, trash
        from gptlab.tracking.run import all_runs

    kinds = reduce.Kinds(optimizer, snapshots)
    found = reduce.find(trash.select_runs(runs) if runs else all_runs(), kinds)
    for reduction in found:
        _print_line(reduction.line(), stderr=as_json)
    if not found:
        _print_line(f"there are no {kinds} to remove from complete runs", stderr=as_json)
    options = [f"--{name}" for name, chosen in {"optimizer": optimizer, "snapshots": snapshots}.items() if chosen]
    if found and not _confirmed(reduce.question(found, kinds), yes, ["gc", *options, *(runs or [])], stderr=as_json):
        found = []
    result = reduce.reduce(found, kinds)
    if as_json:
        _print_json(result.document())
    _fail_with(result.problems)


def _confirmed(question: str, yes: bool, command: list[str], *, stderr: bool = False) -> bool:
    """Ask on a terminal, unless `--yes` was given.

    Raises:
        BadInputError: Without a terminal, `--yes` is needed.
    """
    if not yes and not sys.stdin.isatty():
        again = shlex.join(["gptlab", *command, "--yes"])
        raise BadInputError(f"stdin is not a terminal; pass --yes to confirm: {again}")
    return yes or typer.confirm(printable(question), err=stderr)


def _fail_with(problems: list[str]) -> None:
    for problem in problems:
        _print_line(f"error: {problem}", stderr=True)
    if problems:
        raise typer.Exit(EXIT_FAILED)


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(exit_code(_run_app))


def _run_app() -> int:
    command = typer.main.get_command(app)
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


@contextmanager
def _heavy_imports() -> Iterator[None]:
    """Turn garbage collection off during imports, and exempt the imported objects from later collections.

    Imported objects are not garbage, and scanning them takes a tenth of the import time.
    """
    garbage.disable()
    try:
        with importing("torch"):
            yield
    finally:
        garbage.freeze()
        garbage.enable()


def _exit_with(result: Any, as_json: bool) -> None:
    if as_json:
        _print_json(result.document())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _print_json(document: Any) -> None:
    from gptlab.terminal.json_output import print_json

    print_json(document)


def _print_line(text: str, *, stderr: bool = False) -> None:
    (sys.stderr if stderr else sys.stdout).write(printable(text).replace("\n", " ") + "\n")
