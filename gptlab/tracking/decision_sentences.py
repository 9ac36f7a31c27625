"""A decision as text: one sentence, and the interval of each look."""

import math

from gptlab.sequential import ERROR, Look
from gptlab.terminal.text import plural
from gptlab.tracking.decisions import Decision, name_of


def sentence(decision: Decision, reference: str | None = None, experiment: str | None = None) -> str:
    """Return what is decided, without a full stop.

    Args:
        decision: The decision.
        reference: What to call the reference; by default its name.
        experiment: What to call the experiment; by default its name.
    """
    names = (reference or name_of(decision.reference), experiment or name_of(decision.experiment))
    number = f", decision {decision.number} on this pair" if decision.earlier else ""
    return _sentence(decision, *names) + number


def difference(decision: Decision, look: Look) -> str:
    """Return a look's mean difference and its interval."""
    mean, low, high = (_signed(decision, value) for value in (look.mean, look.low, look.high))
    return f"difference {mean}, {_coverage(decision)} {low} to {high}"


def number(decision: Decision, value: float) -> str:
    """Return a number with two significant digits of the margin, and at least three decimals."""
    decimals = min(max(3, 1 - math.floor(math.log10(decision.margin))), 12)
    return f"{value:.{decimals}f}"


def _sentence(decision: Decision, reference: str, experiment: str) -> str:
    look, both = decision.look, f"{experiment} and {reference}"
    if look is None:
        return f"{both} are not decided yet: {len(decision.pairs)} of at most {decision.max_seeds} seeds"
    seeds = plural(look.seeds, "seed")
    if look.verdict == "diverged":
        pair = decision.pairs[look.seeds - 1]
        losses = {experiment: pair.experiment, reference: pair.reference}
        diverged = " and ".join(name for name, loss in losses.items() if loss is None)
        return f"{both} are undecided: {diverged} diverged with seed {pair.seed}, and a diverged seed decides nothing"
    if look.verdict in {"better", "worse"}:
        low, high = sorted((abs(look.low), abs(look.high)))
        interval = f"{_coverage(decision)} {number(decision, low)} to {number(decision, high)}"
        by = f"by {number(decision, abs(look.mean))} nats/token"
        return f"{experiment} is {look.verdict} than {reference} {by}, {interval}, {seeds}"
    between = difference(decision, look)
    if look.verdict == "equal":
        return f"{experiment} is practically equal to {reference}: {between}, within ±{decision.margin:g}, {seeds}"
    if look.verdict == "undecided":
        return f"{both} are undecided: {between}, {seeds}, the whole budget"
    return f"{both} are not decided yet: {between}, {look.seeds} of at most {decision.max_seeds} seeds"


def _coverage(decision: Decision) -> str:
    interval = f"{100 * (1 - ERROR):.0f}% interval"
    return f"simultaneous {interval} of {decision.comparisons} decisions" if decision.comparisons > 1 else interval


def _signed(decision: Decision, value: float) -> str:
    text = number(decision, abs(value))
    return f"−{text}" if value < 0 and float(text) else text
