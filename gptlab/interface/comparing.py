"""Commands that train several runs: sweep, decide."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import (
    MAX_COUNT,
    DeviceOption,
    JsonOption,
    SetOption,
    ShardOption,
    StepsOption,
    TagsOption,
    TextOption,
    WandbOption,
    check_tags,
    spec_changes,
)
from gptlab.interface.output import exit_with, heavy_imports
from gptlab.interface.processes import check_single
from gptlab.interface.slurm import (
    AccountOption,
    ArrayParallelismOption,
    ConstraintOption,
    CpusOption,
    GpusOption,
    MemoryOption,
    NodesOption,
    NprocOption,
    PartitionOption,
    QosOption,
    SlurmOption,
    TimeOption,
    slurm_settings,
)


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
    nodes: NodesOption = None,
    gpus: GpusOption = None,
    nproc: NprocOption = None,
    shard: ShardOption = False,
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
    check_single("sweep")
    with importing():
        from gptlab.commands.seeds import parse_seeds

    resources = {
        "partition": partition,
        "nodes": nodes,
        "gpus": gpus,
        "nproc": nproc,
        "cpus": cpus,
        "time": time,
        "memory": memory,
        "array_parallelism": array_parallelism,
        "account": account,
        "qos": qos,
        "constraint": constraint,
    }
    request = slurm_settings(slurm, resources, jobs, shard=shard)
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

        submission = Submission(plan_sweep(names, several, changes, "cpu"), options, request, shard=shard)
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
    check_single("decide")
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
