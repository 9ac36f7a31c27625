"""Several seeds of one experiment: how to name them, and the mean of their final validation losses with its interval.

The interval is that of `analysis.stats.estimate`, without its libraries, which training does not need.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gptlab.errors import BadInputError
from gptlab.student_t import t_quantile

MAX_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """Parse `0,1,2` or `0-4`, or a mixture.

    Raises:
        BadInputError: It is something else, names a seed twice, or has too many seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip())
        if not match:
            raise BadInputError(f"--seeds expects numbers such as 0,1,2 or 0-4, not '{text}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_SEEDS:
            raise BadInputError(f"--seeds {part}: a range goes up and has at most {MAX_SEEDS} seeds")
        seeds += range(first, last + 1)
    if len(seeds) > MAX_SEEDS:
        raise BadInputError(f"--seeds names {len(seeds)} seeds; at most {MAX_SEEDS} seeds are possible")
    if repeated := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise BadInputError(f"--seeds names seed {repeated[0]} twice")
    return seeds


@dataclass(frozen=True)
class Summary:
    """The mean over seeds; None where it cannot be said."""

    n: int
    """Number of seeds in the mean."""
    mean: float | None = None
    low: float | None = None
    """Lower end of the 95% t-interval."""
    high: float | None = None
    """Upper end of the 95% t-interval."""
    note: str | None = None
    """Why there is no mean or no interval, or which seeds are not in it."""

    def document(self) -> dict[str, object]:
        """Return the summary's fields."""
        return asdict(self)


def summarize(losses: Sequence[float]) -> Summary:
    """Return mean and interval of the losses of seeds. A diverged one is infinite, and then there is no interval."""
    n = len(losses)
    if n == 0:
        return Summary(0)
    mean = math.fsum(losses) / n
    if not math.isfinite(mean):
        return Summary(n, note="a seed diverged, so its loss counts as infinite")
    if n == 1:
        return Summary(n, mean, note="an interval needs at least two seeds")
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Summary(n, mean, mean - half, mean + half)
