"""What `gptlab sweep` prints before and after its runs: the plan with its times, and the results."""

import sys
from collections.abc import Sequence

from gptlab.commands.run_progress import format_loss, status_text
from gptlab.commands.sweep_plan import Job, SweepPlan
from gptlab.commands.sweep_results import SweepResults
from gptlab.commands.sweep_time import Speed, seconds_of_jobs
from gptlab.terminal.console import Console
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import format_duration, plural, shell_command


def opening(plan: SweepPlan, threads: int, at_once: int, console: Console) -> None:
    """Print what is about to be run, and with how many threads."""
    left = [job for job in plan.jobs if not job.is_done]
    done = len(plan.jobs) - len(left)
    console.print(f"{plan.name}: {plural(len(plan.jobs), 'run')}, {done} of them done", style="bold")
    console.fact("question", plan.why)
    console.fact("jobs", f"{at_once} at once · {plural(threads, 'thread')} each; the last digits depend on the threads")
    console.fact("device", plan.points[0].settings.device_name())
    console.fact("tag", plan.tag)
    kept = [job for job in left if job.threads not in {None, threads}]
    if kept:
        console.notice(
            f"{plural(len(kept), 'run')} to resume {'keeps its' if len(kept) == 1 else 'keep their'} number of "
            f"threads: {', '.join(f'{job.run_id} {job.threads}' for job in kept)}"
        )


def dry_run_document(plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed]) -> dict[str, object]:
    """Return what `gptlab sweep --dry-run --json` prints."""
    return {
        "sweep": plan.name,
        "tag": plan.tag,
        "jobs": at_once,
        "runs": [
            {
                "run": job.run_id,
                "varied": job.point.varied,
                "seed": job.seed,
                "status": job.status,
                "step": job.step,
                "steps": job.point.steps,
                "done": job.is_done,
                "threads": threads[job.run_id],
                "seconds": seconds_of_jobs([(job, job.step, threads[job.run_id])], speeds, 1),
                "command": shell_command("run", *job.point.arguments, "--seed", str(job.seed)),
            }
            for job in plan.jobs
        ],
        "seconds": _whole(plan, threads, at_once, speeds),
    }


def render_dry_run(
    plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed], console: Console
) -> None:
    """Print what would run, in which order, and how long it would take."""
    jobs = plan.jobs
    each = [seconds_of_jobs([(job, job.step, threads[job.run_id])], speeds, 1) for job in jobs]
    columns = [
        Column("run", [job.run_id for job in jobs]),
        *varied_columns(jobs),
        Column("status", [status_text(job.status) for job in jobs]),
        Column("step", [f"{job.step} of {job.point.steps}" for job in jobs], right=True),
        Column("threads", ["–" if job.is_done else str(threads[job.run_id]) for job in jobs], right=True, rank=1),
        Column(
            "time", ["–" if job.is_done else _duration(time) for job, time in zip(jobs, each, strict=True)], right=True
        ),
    ]
    console.table(fitting(columns, console.rich.width)[0])
    left = sum(not job.is_done for job in jobs)
    total, used = _whole(plan, threads, at_once, speeds), plural(len(speeds), "run")
    if total is None:
        time_of_all = "how long is unknown: no past run of each shape on this device"
    else:
        time_of_all = f"about {format_duration(total)} of training, from {used} of the same shape"
    console.print(f"{left} of {plural(len(jobs), 'run')} would run, {at_once} at once; {time_of_all}")


def render(results: SweepResults, console: Console) -> None:
    """Print the mean of each point over its seeds, and each failure with its reason."""
    counts = " · ".join(f"{count} {status}" for status, count in results.counts().items())
    console.print()
    console.print(f"{results.plan.name}: {plural(len(results.results), 'run')} · {counts}", style="bold")
    points = results.of_points()
    names = list(points[0][0].cells)
    console.table(
        fitting(
            [
                *(Column(name, [point.cells[name] for point, _ in points]) for name in names),
                Column("seeds", [str(summary.n) for _, summary in points], right=True),
                Column("val loss", [format_loss(summary.mean) for _, summary in points], right=True),
                Column("95% interval", [_interval(summary.low, summary.high) for _, summary in points], rank=1),
                Column("note", [summary.note or "" for _, summary in points], rank=2),
            ],
            console.rich.width,
        )[0]
    )
    for failure in results.failures():
        reason = failure.seed_result.error if failure.seed_result else ""
        console.print(f"{failure.status}: {failure.job.run_id} ({failure.job.label}): {reason}", style="red")
    if results.stopped_by:
        console.fact("resume", shell_command(*sys.argv[1:]))


def varied_columns(jobs: Sequence[Job]) -> list[Column]:
    """Return the columns of a table that tell runs apart: what is varied, and the seed."""
    names = list(jobs[0].point.cells) if jobs else []
    return [
        *(Column(name, [job.point.cells[name] for job in jobs]) for name in names),
        Column("seed", [str(job.seed) for job in jobs], right=True),
    ]


def _whole(plan: SweepPlan, threads: dict[str, int], at_once: int, speeds: list[Speed]) -> float | None:
    left = [(job, job.step, threads[job.run_id]) for job in plan.jobs if not job.is_done]
    return seconds_of_jobs(left, speeds, at_once)


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_duration(seconds)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"
