"""Commands that read runs: runs, watch, report, diff, eval, batch, verify, sample, export."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.imports import importing
from gptlab.interface.options import MAX_COUNT, DeviceOption, JsonOption, ModelArgument, RunArgument, StepOption
from gptlab.interface.output import exit_with, heavy_imports, print_json


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
        from gptlab.commands import list_runs, run_jobs
        from gptlab.commands.run_filters import Filters
        from gptlab.spec import parse_conditions

    filters = Filters(name, status, tuple(tags or ()), parse_conditions(where or [], "--where"))
    jobs = run_jobs.newest_jobs()
    summaries = list_runs.list_runs(filters, sort, jobs)
    if as_json:
        print_json([summary.facts for summary in summaries])
    else:
        list_runs.render(summaries, tree=sort is None, filtered=filters.active)
        run_jobs.render_without_run(run_jobs.without_run(jobs, filters))
        list_runs.render_space(summaries)


def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids, unique prefixes of ids, directories, or 'tiny-*-s*'. Default: all runs in training.",
            autocompletion=completion.runs,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Time between two looks at the runs.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Watch runs in training: loss curve, tokens/s, ETA and newest sample. Without a terminal, print them once."""
    with importing():
        from gptlab.commands import watch
        from gptlab.terminal.console import Console

    watch.check_interval(interval)
    watched = watch.Watch(runs or [])
    if as_json:
        print_json(watched.document())
    else:
        watch.show(watched, interval, Console())


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
        print_json(comparison.document())
    else:
        diff.render(comparison)
    if patch:
        (sys.stderr if as_json else sys.stdout).write(comparison.printable_patch())


def eval_(
    run: ModelArgument,
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
    """Evaluate a run on the full validation split, or a run or a directory of transformers on another text."""
    if string is not None and text is not None:
        raise BadInputError("--text and --string exclude each other: --text takes a file, --string the text itself")
    with importing():
        from gptlab.huggingface.layout import find_directory
        from gptlab.tracking.run import find_run

    found = find_directory(run, step) or find_run(run)

    with heavy_imports():
        from gptlab.commands import evaluate
        from gptlab.terminal.console import Console

    console = Console(stderr=as_json)
    if isinstance(found, Path):
        result = evaluate.evaluate_directory(found, text=text, device=device, console=console, string=string)
    else:
        result = evaluate.evaluate_run(found, step=step, text=text, device=device, console=console, string=string)
    evaluate.render(result, console)
    if as_json:
        print_json(result.document())


def batch(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="RUN@STEP",
            help="A run and one of its steps, counted from 0: its batch made STEP steps one more.",
            autocompletion=completion.runs,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Print the passages that a step trained on."""
    with heavy_imports():
        from gptlab.commands import batch
        from gptlab.terminal.console import Console

    console = Console(stderr=as_json)
    found = batch.read_batch(*batch.find_step(reference))
    if as_json:
        print_json(found.document())
    else:
        batch.render(found, console)


def verify(
    run: RunArgument,
    first: Annotated[
        int | None,
        typer.Option("--from", min=0, metavar="STEP", help="Step of a resumable checkpoint. Default: the first step."),
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", min=0, metavar="STEP", help="Step to end at. Default: the last one.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The run's text, if it has moved.", autocompletion=completion.texts)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run's files, replay it, and compare its metrics and checkpoints."""
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)

    with heavy_imports():
        from gptlab.commands import verify
        from gptlab.terminal.console import Console
        from gptlab.verification.verify import verify_run

    console = Console(stderr=as_json)
    result = verify_run(found, first=first, last=last, console=console, text=text)
    verify.render(result, found, console)
    if not_stored := verify.store(found, result):
        console.notice(f"the result is not stored: {not_stored}")
    exit_with(result, as_json)


def sample(
    run: ModelArgument,
    prompt: Annotated[str | None, typer.Option(help="Text to continue. Default: The.", show_default=False)] = None,
    prompt_files: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            help="File whose text is a prompt, without the newline at its end. Repeatable.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Number of different continuations.")] = 1,
    tokens: Annotated[int | None, typer.Option(min=1, help="New tokens per text. Default: as many as fit.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Divides the logits; 0 takes the most likely token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 for all.")] = 50,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Sample from the fewest likeliest tokens with this total probability."),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Sample from tokens at least this many times as likely as the likeliest."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed for sampling.")] = 0,
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with the model of a run or of a directory of transformers. Streams one text to a terminal."""
    if prompt is not None and prompt_files:
        raise BadInputError("--prompt and --prompt-file exclude each other: give one text, or files with one each")
    with importing():
        from gptlab.huggingface.layout import find_directory
        from gptlab.tracking.run import find_run

    found = find_directory(run, step) or find_run(run)

    with heavy_imports():
        from gptlab.commands import sample

    prompts = [sample.read_prompt(file) for file in prompt_files or ()] or ["The" if prompt is None else prompt]
    stream = not as_json and count == 1 and sys.stdout.isatty()
    results = sample.sample_each(
        found,
        step,
        prompts,
        count,
        max_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stream=stream,
    )
    if as_json:
        documents = [result.document() for result in results]
        print_json(documents if len(prompt_files or ()) > 1 else documents[0])
    elif not stream:
        sample.render(results)


def export(
    run: RunArgument,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Directory to write; it must not exist.")],
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model for Hugging Face's transformers, as GPT2LMHeadModel."""
    with importing():
        from gptlab.tracking.run import find_run

    found = find_run(run)

    with heavy_imports():
        from gptlab.commands import export
        from gptlab.terminal.console import Console

    result = export.export_run(found, directory, step)
    export.render(result, Console(stderr=as_json))
    if as_json:
        print_json(result.document())
