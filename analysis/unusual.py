"""Steps whose training loss or gradient norm is far outside the run's own spread.

A value is compared with the median of the rows around it, up to `NEIGHBORS` on each side and as many on one side as on
the other, so a steadily falling curve has no deviation. The unit is the run's own spread: 1.4826 times the median
absolute deviation, which is the standard deviation of normally distributed deviations and is not moved by spikes
(Rousseeuw and Croux 1993). Gradient norms are compared as logarithms, because they vary by factors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame, Series

NEIGHBORS = 10
MIN_ROWS = 30
"""A run with fewer rows has no spread to speak of."""
FAR = 8.0
"""In spreads. Of ten million normally distributed deviations, none is expected that far out."""
MAX_LISTED = 10

NOTE = (
    "Steps whose training loss or gradient norm is more than 8 spreads above the median of the rows around it, the "
    "furthest first. The spread is the run's own: 1.4826 times the median absolute deviation from it. A row is "
    "a mean over the steps since the row before it, so with train.log_every above 1 each of them may be the cause."
)

COLUMNS = {"train/loss": "training loss", "optim/grad_norm": "gradient norm"}


class UnusualStep(NamedTuple):
    """A row with an unusually large value."""

    run: str
    step: int
    """The row's step."""
    first: int
    """The row is the mean of the steps from here to the one before `step`."""
    what: str
    """The quantity."""
    value: float
    typical: float
    """The median of the rows around it."""
    spreads: float
    """How far it is above the median, in spreads of the run."""

    @property
    def command(self) -> str:
        """Prints the passages of the first step."""
        return f"gptlab batch {self.run}@{self.first}"


def unusual_steps(metrics: DataFrame) -> list[UnusualStep]:
    """Return the most unusual rows of `load.metrics()`, the furthest from their surroundings first.

    Of rows beside each other, only the most unusual one is returned.
    """
    found = []
    for run, rows in metrics.groupby("run", sort=False):
        before = rows["step"].shift(fill_value=0)
        for column, what in COLUMNS.items():
            known = np.isfinite(rows[column].to_numpy()) & (rows[column].to_numpy() > 0)
            if known.sum() < MIN_ROWS:
                continue
            values, steps, first = (each.to_numpy()[known] for each in (rows[column], rows["step"], before))
            middle, spreads = deviations(np.log(values) if column == "optim/grad_norm" else values)
            typical = np.exp(middle) if column == "optim/grad_norm" else middle
            found += [
                UnusualStep(
                    str(run), int(steps[i]), int(first[i]), what, float(values[i]), float(typical[i]), float(spreads[i])
                )
                for i in _peaks(spreads)
            ]
    return sorted(found, key=lambda step: -step.spreads)[:MAX_LISTED]


def deviations(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median around each value, and how many spreads the value is above it; 0 if there is no spread."""
    middle = Series(values).rolling(2 * NEIGHBORS + 1, center=True).median().to_numpy(copy=True)
    for i in range(min(NEIGHBORS, len(values))):
        for at in (i, len(values) - 1 - i):
            n = min(at, len(values) - 1 - at, NEIGHBORS)
            middle[at] = np.median(values[at - n : at + n + 1])
    residuals = values - middle
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    return middle, residuals / spread if spread else np.zeros_like(values)


def sentences(metrics: DataFrame) -> list[str]:
    """Return a sentence for each of the most unusual steps, with a command that prints its passages."""
    return [_sentence(step) for step in unusual_steps(metrics)]


def _sentence(step: UnusualStep) -> str:
    last = step.step - 1
    where = f"in step {last}" if step.first == last else f"on average over steps {step.first} to {last}"
    return (
        f"{step.run}: a {step.what} of {step.value:.4g} {where}, where {step.typical:.4g} is typical "
        f"({step.spreads:.0f} spreads above): `{step.command}`"
    )


def _peaks(spreads: NDArray[np.float64]) -> list[int]:
    """The indices of values that are far out; of each stretch of neighbors, the furthest."""
    far = np.flatnonzero(spreads > FAR)
    stretches = np.split(far, np.flatnonzero(np.diff(far) > 1) + 1)
    return [int(stretch[np.argmax(spreads[stretch])]) for stretch in stretches if len(stretch)]
