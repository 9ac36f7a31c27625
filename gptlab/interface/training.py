"""Commands that train: run, resume, sweep, decide."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import (
    MAX_COUNT,
    ArtifactsOption,
    CaptureOption,
    CompileOption,
    DeterministicOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SetOption,
    StepsOption,
    TagsOption,
    TextOption,
    WandbOption,
    check_tags,
    spec_changes,
)
from gptlab.interface.output import exit_with, heavy_imports
from gptlab.interface.slurm import (
    AccountOption,
    ArrayParallelismOption,
    ConstraintOption,
    CpusOption,
    GpusOption,
    MemoryOption,
    PartitionOption,
    QosOption,
    SlurmOption,
    TimeOption,
    slurm_settings,
)


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
            metavar="RUN[@STEP]|DIR",
            help="Start from the weights of another run, or of a directory of transformers' GPT-2.",
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

    check_tags(tags)
    if notes.encode(errors="replace") != notes.encode(errors="surrogateescape"):
        raise BadInputError(f"--notes must be UTF-8 text, not {notes!r}; check the terminal's encoding and the locale")
    if from_ is not None and branch is not None:
        raise BadInputError("--from and --branch exclude each other: --from takes the weights only, --branch all state")
    if seeds is not None and seed is not None:
        raise BadInputError("--seed and --seeds exclude each other")
    if seeds is not None and branch is not None:
        raise BadInputError("--seeds and --branch exclude each other: a branch has the seed of its parent")
    several = parse_seeds(seeds) if seeds is not None else []
    experiment = catalog.find(name).with_changes(spec_changes(settings, text, steps))

    with heavy_imports():
        from gptlab.commands.run import Options, run_experiment
        from gptlab.commands.run_seeds import render, run_seeds
        from gptlab.terminal.console import Console
        from gptlab.training.initial import find_branch, find_start

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
        weights = find_start(from_, experiment.model) if from_ is not None else None
        outcome = run_seeds(experiment, several, options, weights, stderr=as_json)
        render(outcome, experiment, Console(stderr=as_json))
        exit_with(outcome, as_json)
        return
    branch_point = find_branch(branch, experiment) if branch is not None else None
    parent = find_start(from_, experiment.model) if from_ is not None else branch_point
    if seed is None:
        seed = branch_point.seed if branch_point else 0
    exit_with(run_experiment(experiment, seed, options, Console(stderr=as_json), parent), as_json)


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

    with heavy_imports():
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
    exit_with(resume_run(found, options, Console(stderr=as_json)), as_json)


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
        int | None,
        typer.Option(min=1, max=MAX_COUNT, help="Processes at once, which share the cores or the GPU. Default: 1."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would run, and how long it takes.")
    ] = False,
    steps: StepsOption = None,
    text: TextOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    wandb: WandbOption = None,
    tags: TagsOption = None,
    slurm: SlurmOption = False,
    partition: PartitionOption = None,
    gpus: GpusOption = None,
    cpus: CpusOption = None,
    time: TimeOption = None,
    memory: MemoryOption = None,
    array_parallelism: ArrayParallelismOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    constraint: ConstraintOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start or resume all runs of a sweep that are not complete."""
    with importing():
        from gptlab.commands.seeds import parse_seeds

    resources = {
        "partition": partition,
        "gpus": gpus,
        "cpus": cpus,
        "time": time,
        "memory": memory,
        "array_parallelism": array_parallelism,
        "account": account,
        "qos": qos,
        "constraint": constraint,
    }
    request = slurm_settings(slurm, resources, jobs)
    check_tags(tags)
    several = parse_seeds(seeds) if seeds is not None else None
    changes = spec_changes(settings, text, steps)

    with heavy_imports():
        from gptlab.commands.sweep import DryRun, Options, run_sweep
        from gptlab.commands.sweep_plan import plan_sweep
        from gptlab.commands.sweep_view import render
        from gptlab.mirror.modes import check_wandb_mode
        from gptlab.terminal.console import Console

    if wandb is None:
        check_wandb_mode()
    console = Console(stderr=as_json)
    options = Options(jobs or 1, device, wandb, tuple(tags or ()))
    if request:
        from gptlab.commands.sweep_slurm import Submission

        submission = Submission(plan_sweep(names, several, changes, "cpu"), options, request)
        if not dry_run:
            submission.submit()
        submission.render(console)
        exit_with(submission, as_json)
        return
    planned = plan_sweep(names, several, changes, device)
    if dry_run:
        would_run = DryRun(planned, options)
        if not as_json:
            would_run.render(console)
        exit_with(would_run, as_json)
        return
    results = run_sweep(planned, options, console)
    render(results, console)
    exit_with(results, as_json)


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
    check_tags(tags)
    changes = spec_changes(settings, text, steps)
    first, second = (catalog.find(name).with_changes(changes) for name in (reference, experiment))

    with heavy_imports():
        from gptlab.commands import decide
        from gptlab.commands.run import Options
        from gptlab.terminal.console import Console

    options = Options(device=device, wandb=wandb, tags=tuple(tags or ()), next_commands=False)
    request = decide.Request(margin, max_seeds, comparisons)
    outcome = decide.decide(first, second, request, options, stderr=as_json)
    decide.render(outcome, Console(stderr=as_json))
    exit_with(outcome, as_json)
