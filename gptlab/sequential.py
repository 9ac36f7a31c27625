"""Decisions between two experiments by repeated paired t-intervals, valid after every seed.

After 3, 4, … seeds, up to a budget that is fixed at the first look, the mean of the paired differences gets a
t-interval. All intervals have one nominal level, so low that all of them together cover the true difference with 95%
probability if the differences are normal (repeated confidence intervals: Jennison and Turnbull, Group Sequential
Methods with Applications to Clinical Trials, 2000, chapter 9). So looking after every seed costs no error, and any
reason to stop is allowed.

The levels are in `gptlab.sequential_levels`; `analysis.decision_levels` simulates them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptlab.errors import BadInputError
from gptlab.sequential_levels import LEVELS
from gptlab.student_t import t_quantile

ERROR = 0.05
"""Probability that an interval of any decision under one headline misses the true difference."""
FIRST_LOOK = 3
DEFAULT_SEEDS = 20
MAX_SEEDS = 50
MAX_COMPARISONS = 10

Verdict = Literal["open", "better", "worse", "equal", "undecided", "diverged"]
"""`better` and `worse`: the interval excludes zero. `equal`: it is inside ±margin, whether it excludes zero or not.
`undecided`: the budget is spent. `diverged`: a seed diverged, which decides nothing. `open`: more seeds are needed."""


@dataclass(frozen=True)
class Design:
    """What is fixed at the first look."""

    margin: float
    """Differences below it are of no interest, in nats per token."""
    max_seeds: int
    """The budget."""
    comparisons: int
    """Number of decisions under one headline, which share the error."""
    level: float
    """The nominal level of each interval."""

    def interval(self, seeds: int, sd: float) -> float:
        """Return half the width of the interval after some seeds, if this is the differences' standard deviation."""
        return t_quantile(seeds - 1, 1 - self.level) * sd / math.sqrt(seeds)


def design(margin: float, max_seeds: int | None = None, comparisons: int | None = None) -> Design:
    """Return a design with its nominal level; by default for 20 seeds and one comparison.

    Raises:
        BadInputError: A value is out of range.
    """
    max_seeds = DEFAULT_SEEDS if max_seeds is None else max_seeds
    comparisons = 1 if comparisons is None else comparisons
    if not (math.isfinite(margin) and margin > 0):
        raise BadInputError(
            f"--margin must be a positive number of nats/token, such as 0.02, not {margin:g}: differences below it are "
            "of no interest"
        )
    if not FIRST_LOOK <= max_seeds <= MAX_SEEDS:
        raise BadInputError(f"--max-seeds must be {FIRST_LOOK} to {MAX_SEEDS}, not {max_seeds}")
    if not 1 <= comparisons <= MAX_COMPARISONS:
        raise BadInputError(f"--comparisons must be 1 to {MAX_COMPARISONS}, not {comparisons}")
    return Design(margin, max_seeds, comparisons, LEVELS[comparisons - 1][max_seeds - FIRST_LOOK])


@dataclass(frozen=True)
class Look:
    """The differences of the first `seeds` seeds. `low` and `high` are NaN without an interval."""

    seeds: int
    mean: float
    sd: float
    low: float
    high: float
    verdict: Verdict


def looks(design: Design, differences: Sequence[float]) -> Iterator[Look]:
    """Yield each look at differences in the order of the seeds; the last one that is needed decides.

    A difference that is not finite is of a seed that diverged. It ends the looks.
    """
    for seeds in range(1, len(differences) + 1):
        look = _look(design, differences[:seeds])
        if seeds >= FIRST_LOOK or look.verdict != "open":
            yield look
        if look.verdict != "open":
            return


def decide(design: Design, differences: Sequence[float]) -> Look | None:
    """Return the look that decides, or else the last one; None before the first look."""
    return next(reversed(list(looks(design, differences))), None)


def seeds_to_reach(margin: float, sd: float, comparisons: int) -> int | None:
    """Return the smallest budget whose last interval is narrower than ±margin; None if none up to MAX_SEEDS is."""
    budgets = (design(margin, seeds, comparisons) for seeds in range(FIRST_LOOK, MAX_SEEDS + 1))
    return next((each.max_seeds for each in budgets if each.interval(each.max_seeds, sd) < margin), None)


def _look(design: Design, differences: Sequence[float]) -> Look:
    seeds, nan = len(differences), math.nan
    if not all(map(math.isfinite, differences)):
        return Look(seeds, nan, nan, nan, nan, "diverged")
    mean = math.fsum(differences) / seeds
    if seeds < FIRST_LOOK:
        return Look(seeds, mean, nan, nan, nan, "open")
    sd = math.sqrt(math.fsum((each - mean) ** 2 for each in differences) / (seeds - 1))
    half = design.interval(seeds, sd)
    low, high = mean - half, mean + half
    return Look(seeds, mean, sd, low, high, _verdict(design, seeds, low, high))


def _verdict(design: Design, seeds: int, low: float, high: float) -> Verdict:
    if -design.margin < low and high < design.margin:
        return "equal"
    if low > 0:
        return "worse"
    if high < 0:
        return "better"
    return "undecided" if seeds >= design.max_seeds else "open"
