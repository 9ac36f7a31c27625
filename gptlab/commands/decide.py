"""`gptlab decide`: train two experiments with one seed after the other until their difference is decided.

See `gptlab.sequential` for the procedure. The seeds are 0, 1, 2, …; runs that exist count. A decision that was stopped
continues from what is stored.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.commands.run import Options, run_experiment
from gptlab.errors import EXIT_DIVERGED, BadInputError, DivergedError, GptlabError
from gptlab.failures import report
from gptlab.sequential import FIRST_LOOK, MAX_SEEDS, Look, design, seeds_to_reach
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.text import plural, shell_command
from gptlab.tracking import decisions
from gptlab.tracking.decision_sentences import difference, number, sentence
from gptlab.tracking.decisions import Decision
from gptlab.tracking.metrics import Row, stream_metrics
from gptlab.tracking.run import RECORD, load_run
from gptlab.training.plan import Plan, plan

COLUMN, YARDSTICK = "val/loss", "val/yardstick"

PAIRED = {
    "data.val_fraction": "so they are validated on different windows",
    "data.val_windows": "so they are validated on different windows",
    "train.sequence_length": "so their batches and validation windows differ",
    "train.batch_size": "so their batches differ, and runs with the same seed are no pairs",
    "train.steps": "so they are compared at different steps",
}
"""Fields in which a pair must agree, and why."""


@dataclass(frozen=True)
class Request:
    """What to decide. None stands for what is stored, or the default."""

    margin: float
    max_seeds: int | None = None
    comparisons: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A decision after its command has ended."""

    decision: Decision
    stopped: int = 0
    """The exit code if a signal stopped the command, else 0."""

    @property
    def exit_code(self) -> int:
        """That of a signal or of divergence, else 0, also if the pair is undecided after the whole budget."""
        return self.stopped or (EXIT_DIVERGED if self.decision.verdict == "diverged" else 0)

    def document(self) -> dict[str, Any]:
        """Return what `gptlab decide --json` prints."""
        decision, look = self.decision, self.decision.look
        return {
            **decision.model_dump(mode="json"),
            "verdict": decision.verdict,
            "seeds": len(decision.pairs),
            "mean": look.mean if look else None,
            "low": look.low if look else None,
            "high": look.high if look else None,
            "sentence": sentence(decision),
            "file": str(decisions.path_of(decision.reference, decision.experiment, decision.steps)),
        }


def decide(
    reference: Experiment, experiment: Experiment, request: Request, options: Options, *, stderr: bool = False
) -> Outcome:
    """Train both experiments with the next seed, until they are decided or the budget is spent.

    Args:
        reference: What to compare with.
        experiment: What is better, worse or practically equal.
        request: The margin and the budget.
        options: How to run.
        stderr: Whether to print on stderr.

    Raises:
        BadInputError: The experiments or the request cannot be used.
        GptlabError: A run fails, or a stored decision is damaged.
    """
    console = Console(stderr=stderr)
    _check_specs(reference, experiment)
    pair = plan(reference, 0, options.device), plan(experiment, 0, options.device)
    _check_plans(*pair)
    decision = _begin(pair, request, console)
    _opening(decision, console)
    for earlier in decision.looks():
        _print_look(decision, earlier, console)
    while decision.verdict == "open":
        rows = []
        for planned in pair:
            row, exit_code = _row(planned, len(decision.pairs), options, stderr)
            if exit_code:
                return Outcome(decision, exit_code)
            rows.append(row)
        decision = _with_rows(decision, rows)
        if look := decision.look:
            decisions.store(decision)
            _print_look(decision, look, console)
    return Outcome(decision)


def _check_specs(a: Experiment, b: Experiment) -> None:
    """Check that runs of two experiments with the same seed are pairs, as far as their specs tell.

    Raises:
        BadInputError: They are the same experiment, or differ in their yardsticks, batches or steps.
    """
    if a.name == b.name:
        raise BadInputError(f"{a.name} is compared with itself; name two experiments that differ")
    for key, why in PAIRED.items():
        first, second = (getattr(getattr(each, key.partition(".")[0]), key.partition(".")[2]) for each in (a, b))
        if first != second:
            option = "--steps STEPS" if key == "train.steps" else f"--set {key}=VALUE"
            raise BadInputError(
                f"{a.name} and {b.name} differ in {key} ({first} and {second}), {why}; give both the same with {option}"
            )


def _check_plans(a: Plan, b: Plan) -> None:
    """Check what the specs do not tell.

    Raises:
        BadInputError: The experiments compute the same, or differ in their tokenizers or texts.
    """
    names = f"{a.experiment.name} and {b.experiment.name}"
    if a.identity.hash == b.identity.hash:
        raise BadInputError(f"{names} compute the same; name two experiments that differ")
    if a.tokenizer.sha256 != b.tokenizer.sha256:
        raise BadInputError(
            f"{names} have different tokenizers ({a.tokenizer.name} and {b.tokenizer.name}), so their losses per token "
            "are not comparable; `gptlab report` compares their bits per byte"
        )
    if a.text.sha256 != b.text.sha256:
        texts = f"{a.text.source} and {b.text.source}"
        raise BadInputError(f"{names} have different texts ({texts}); give both the same with --text TEXT")


def render(outcome: Outcome, console: Console) -> None:
    """Print the decision in one sentence, and where it is stored or how it continues."""
    decision = outcome.decision
    console.print()
    if outcome.stopped:
        console.fact("resume", shell_command(*sys.argv[1:]))
    path = decisions.path_of(decision.reference, decision.experiment, decision.steps)
    if decision.look:
        console.fact("stored in", project.display_path(path))
    console.print(sentence(decision), style="bold")


def _begin(pair: tuple[Plan, Plan], request: Request, console: Console) -> Decision:
    """The stored decision if it is the one that is asked for, else a new one."""
    reference, experiment = (f"{each.identity.name}-{each.identity.hash}" for each in pair)
    steps = pair[0].experiment.train.steps
    stored = decisions.find(reference, experiment, steps)
    max_seeds, comparisons = request.max_seeds, request.comparisons
    if stored is None:
        return decisions.new_decision(reference, experiment, steps, design(request.margin, max_seeds, comparisons))
    max_seeds = stored.max_seeds if max_seeds is None else max_seeds
    comparisons = stored.comparisons if comparisons is None else comparisons
    if (stored.margin, stored.max_seeds, stored.comparisons) == (request.margin, max_seeds, comparisons):
        return stored
    wanted = design(request.margin, max_seeds, comparisons)
    console.notice(
        f"this is a new decision: the budget and the margin of a decision are fixed at its first look. The stored one, "
        f"with --margin {stored.margin:g} --max-seeds {stored.max_seeds} --comparisons {stored.comparisons}, was "
        f"{stored.verdict} after {plural(len(stored.pairs), 'seed')}; the two together err more often than one"
    )
    return decisions.new_decision(reference, experiment, steps, wanted, (*stored.earlier, stored.summary()))


def _row(planned: Plan, seed: int, options: Options, stderr: bool) -> tuple[Row | None, int]:
    """A run's row at the last step, which may have to be trained; None if it diverged. And the exit code of a signal.

    Raises:
        GptlabError: The run fails, is damaged, or has no validation loss at that step.
    """
    experiment = planned.experiment
    directory = project.runs_directory() / planned.identity.run_id(seed)
    steps = experiment.train.steps
    if row := _recorded_row(directory, steps):
        return row, 0
    console = Console(stderr=stderr)
    console.print()
    try:
        result = run_experiment(experiment, seed, options, console)
    except DivergedError as error:
        if load_run(directory).history().step <= steps:
            report(error)
            return None, 0
    else:
        if result.exit_code:
            return None, result.exit_code
    if row := _recorded_row(directory, steps):
        return row, 0
    raise BadInputError(
        f"{directory.name} was trained further and has no validation loss at step {steps}; choose a multiple of its "
        f"eval_every, {experiment.train.eval_every}, with --steps"
    )


def _recorded_row(directory: Path, steps: int) -> Row | None:
    if not (directory / RECORD).is_file():
        return None
    if damage := load_run(directory).history().damage:
        raise GptlabError(f"{damage}; restore the run from a copy, or move it away with: gptlab rm {directory.name}")
    rows = [row for row in stream_metrics(directory) if row["step"] == steps and COLUMN in row]
    return rows[-1] if rows else None


def _with_rows(decision: Decision, rows: list[Row | None]) -> Decision:
    yardsticks = {row[YARDSTICK] for row in rows if row and YARDSTICK in row}
    if len(yardsticks) > 1:
        raise GptlabError(
            f"{decision.reference} and {decision.experiment} were validated on different windows with seed "
            f"{len(decision.pairs)} (yardsticks {' and '.join(sorted(yardsticks))}); move the older runs away"
        )
    losses = [row[COLUMN] if row and math.isfinite(row[COLUMN]) else None for row in rows]
    return decision.with_pair(*losses)


def _opening(decision: Decision, console: Console) -> None:
    names = map(decisions.name_of, (decision.experiment, decision.reference))
    console.print(f"{' against '.join(names)} after {plural(decision.steps, 'step')}", style="bold")
    console.fact("margin", f"{decision.margin:g} nats/token")
    shared = f", shared by {decision.comparisons} decisions" if decision.comparisons > 1 else ""
    console.fact(
        "budget", f"{decision.max_seeds} seeds, looks from {FIRST_LOOK} on at level {decision.level:g}{shared}"
    )
    console.print()


def _print_look(decision: Decision, look: Look, console: Console) -> None:
    if look.verdict == "diverged":
        return
    console.fact(plural(look.seeds, "seed"), f"{difference(decision, look)} nats/token")
    if look.seeds == FIRST_LOOK and look.verdict == "open":
        console.fact("", _reach(decision, look))


def _reach(decision: Decision, look: Look) -> str:
    """Whether the interval can become narrower than the margin within the budget, as far as three seeds can tell."""
    half = decision.design.interval(decision.max_seeds, look.sd)
    margin, budget = f"the margin of {decision.margin:g}", f"{decision.max_seeds} seeds"
    forecast = f"with the spread of these seeds, {budget} give ±{number(decision, half)}"
    if half < decision.margin:
        return f"{forecast}: {margin} can be reached within the budget"
    needed = seeds_to_reach(decision.margin, look.sd, decision.comparisons)
    return f"{forecast}: {margin} cannot be reached within the budget; it takes " + (
        f"about {needed} seeds" if needed else f"more than {MAX_SEEDS} seeds"
    )
