"""`gptlab run --seeds`: the runs of several seeds, one after the other in one process, with one summary."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gptlab.commands import run_messages as messages
from gptlab.commands.run import Options, Result, run_experiment
from gptlab.commands.seeds import Summary, summarize
from gptlab.errors import EXIT_SIGINT, BadInputError, GptlabError
from gptlab.failures import describe, report
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.text import plural, shell_command
from gptlab.tracking.records import ImportedWeights, InitialWeights
from gptlab.tracking.run import Run, load_run
from gptlab.training.plan import plan


@dataclass(frozen=True)
class SeedResult:
    """What became of one seed."""

    seed: int
    run: Run | None
    """None if the run could not be created."""
    exit_code: int
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """Return what `gptlab run --json` prints for one run, with the seed and, if there is one, the error."""
        facts = Result(self.run).document() if self.run else {"run": None, "status": "failed"}
        return {"seed": self.seed, **facts, **({"error": self.error} if self.error else {})}


@dataclass(frozen=True)
class SeedResults:
    """What became of all seeds."""

    results: list[SeedResult]
    not_started: list[int]
    """The seeds after the one at which a signal stopped the command."""

    @property
    def exit_code(self) -> int:
        """The worst exit code of all seeds: that of a signal, then of divergence, of bad input, of a failure."""
        return max([result.exit_code for result in self.results] + [EXIT_SIGINT if self.not_started else 0])

    def document(self) -> dict[str, Any]:
        """Return what `gptlab run --seeds --json` prints."""
        return {
            "runs": [result.document() for result in self.results],
            "not_started": self.not_started,
            "summary": self.summary().document(),
        }

    def summary(self) -> Summary:
        """Return the mean validation loss over the seeds that are complete or diverged."""
        facts = [result.document() for result in self.results]
        complete = [each for each in facts if each["status"] == "complete" and each["val_loss"] is not None]
        diverged = [each for each in facts if each["status"] == "diverged"]
        steps = sorted({each["step"] for each in complete})
        if len(steps) > 1:
            return Summary(0, note=f"the seeds ended at different steps: {', '.join(map(str, steps))}")
        found = summarize([each["val_loss"] for each in complete] + [float("inf")] * len(diverged))
        missing = len(self.results) + len(self.not_started) - len(complete) - len(diverged)
        return replace(found, note=f"without {missing} that did not complete") if missing else found


def run_seeds(
    experiment: Experiment,
    seeds: Sequence[int],
    options: Options,
    parent: InitialWeights | ImportedWeights | None = None,
    *,
    stderr: bool = False,
) -> SeedResults:
    """Start, resume or extend the run of each seed. If one diverges or fails, the others still run.

    Args:
        experiment: What to compute.
        seeds: The seeds.
        options: How to run.
        parent: See `run_experiment`.
        stderr: Whether to print on stderr.

    Raises:
        BadInputError: The first seed cannot be run because of its input, which is that of the others as well.
    """
    results: list[SeedResult] = []
    options = replace(options, next_commands=False)
    for seed in seeds:
        try:
            results.append(_run_seed(experiment, seed, options, parent, stderr, is_first=not results))
        except KeyboardInterrupt:
            break
        if results[-1].exit_code > 128:
            break
    return SeedResults(results, list(seeds[len(results) :]))


def _run_seed(
    experiment: Experiment,
    seed: int,
    options: Options,
    parent: InitialWeights | ImportedWeights | None,
    stderr: bool,
    *,
    is_first: bool,
) -> SeedResult:
    console = Console(stderr=stderr)  # one each, because its log is the run's
    if not is_first:
        console.print()
    try:
        result = run_experiment(experiment, seed, options, console, parent)
    except Exception as error:
        if is_first and isinstance(error, BadInputError):
            raise
        code = report(error)  # raises it if it is a bug
        run = None
        with suppress(GptlabError, OSError):
            run = load_run(plan(experiment, seed, options.device, parent).run_directory)
        return SeedResult(seed, run, code, describe(error))
    return SeedResult(seed, result.run, result.exit_code)


def render(outcome: SeedResults, experiment: Experiment, console: Console) -> None:
    """Print one line per seed, the mean over seeds with its interval, and the next commands once."""
    console.print()
    count = len(outcome.results) + len(outcome.not_started)
    console.print(f"{experiment.name}: {plural(count, 'seed')}", style="bold")
    for result in outcome.results:
        facts = result.document()
        loss = facts.get("val_loss")
        measured = "" if loss is None else f"val loss {loss:.4f} · "
        at = f" at step {facts['step']}" if "step" in facts else ""
        console.fact(f"seed {result.seed}", f"{measured}{facts['status']}{at}")
    for seed in outcome.not_started:
        console.fact(f"seed {seed}", "not started")
    summary = outcome.summary()
    interval = f" · 95% interval {summary.low:.4f} to {summary.high:.4f}" if summary.low is not None else ""
    mean = "–" if summary.mean is None else f"{summary.mean:.4f} nats/token"
    console.fact("mean", f"{mean}{interval}{f' ({summary.note})' if summary.note else ''}")
    if outcome.exit_code > 128:
        console.fact("resume", shell_command(*sys.argv[1:]))
        return
    complete = [result.run for result in outcome.results if result.run and result.exit_code == 0]
    if complete:
        steps = complete[-1].history().step
        messages.next_commands(
            complete[-1], complete[-1].history(), console, extend=f"the same command with --steps {2 * steps}"
        )
