"""Commands that train one run: run, resume."""

from typing import Annotated

import typer

from gptlab import completion
from gptlab.distributed.place import place
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import (
    ArtifactsOption,
    CaptureOption,
    CompileOption,
    DeterministicOption,
    DeviceOption,
    JsonOption,
    ProcessesOption,
    RunArgument,
    SetOption,
    ShardOption,
    StepsOption,
    TagsOption,
    TextOption,
    TimeoutOption,
    WandbOption,
    check_tags,
    spec_changes,
)
from gptlab.interface.output import exit_with, heavy_imports
from gptlab.interface.processes import launch_processes


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
    nproc: ProcessesOption = None,
    shard: ShardOption = False,
    timeout: TimeoutOption = 600,
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
    if several and max(nproc or 1, place().size) > 1:
        raise BadInputError("--seeds works with one process per run only; pass --seed, or leave --nproc out")
    launch_processes(experiment, nproc, shard)

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
        shard=shard,
        timeout_s=timeout,
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
    nproc: ProcessesOption = None,
    shard: ShardOption = False,
    timeout: TimeoutOption = 600,
    wandb: WandbOption = None,
    artifacts: ArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resume or extend a run from its stored spec."""
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)
    launch_processes(found.record.spec, nproc, shard)

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
        shard=shard,
        timeout_s=timeout,
        wandb=wandb,
        artifacts=artifacts,
    )
    exit_with(resume_run(found, options, Console(stderr=as_json)), as_json)
