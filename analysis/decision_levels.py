"""The simulation behind `gptlab.sequential_levels`, which `gptlab decide` reads: `python -m analysis.decision_levels`.

Repeated confidence intervals (Jennison and Turnbull 2000, chapter 9) at 3, 4, … N seeds, all with one nominal level α′,
cover the true difference at every look with probability 1 − α if α′ is the α-quantile of the smallest p-value of all
looks at a sequence of normal differences without effect. The p-values of successive looks depend on each other, and the
t-distribution changes with each, so the quantile is simulated.
"""

import sys
import textwrap

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from gptlab.sequential import ERROR, FIRST_LOOK, MAX_COMPARISONS, MAX_SEEDS

HISTORIES = 1_000_000
CHUNK = 20_000
"""Histories simulated at a time, to bound memory."""


def levels(histories: int = HISTORIES, seed: int = 0, max_seeds: int = MAX_SEEDS) -> NDArray[np.float64]:
    """Simulate the nominal levels.

    Args:
        histories: Number of sequences. With a million, the relative standard error is 0.5% for one comparison and 1.5%
            for ten.
        seed: Seed of the sequences.
        max_seeds: The largest budget.

    Returns:
        Levels, shape (MAX_COMPARISONS, max_seeds − 2): a row for 1, 2, … comparisons, a column for a budget of 3, 4, …
        seeds.
    """
    random = np.random.default_rng(seed)
    sizes = [min(CHUNK, histories - start) for start in range(0, histories, CHUNK)]
    smallest = np.concatenate([smallest_p_values(random.standard_normal((size, max_seeds))) for size in sizes])
    errors = ERROR / np.arange(1, MAX_COMPARISONS + 1)
    found: NDArray[np.float64] = np.quantile(smallest, errors, axis=0)
    found[:, 0] = errors  # a single look is a t-test
    return found


def smallest_p_values(differences: NDArray[np.float64]) -> NDArray[np.float32]:
    """The smallest p-value of the looks so far.

    Args:
        differences: Sequences of paired differences, shape (histories, seeds).

    Returns:
        One column for each look at 3, 4, … seeds.
    """
    n = np.arange(1, differences.shape[1] + 1)
    mean = differences.cumsum(axis=1) / n
    squares = (differences**2).cumsum(axis=1) - n * mean**2
    looks = slice(FIRST_LOOK - 1, None)
    standard_error = np.sqrt(squares[:, looks] / (n[looks] - 1) / n[looks])
    p_values = 2 * stdtr(n[looks] - 1, -np.abs(mean[:, looks]) / standard_error)
    return np.minimum.accumulate(p_values, axis=1).astype(np.float32)


def main() -> None:
    """Print the table as Python, rounded to three digits."""
    for row in levels():
        numbers = textwrap.fill(", ".join(f"{level:.3g}" for level in row), 112)
        sys.stdout.write(f"    (\n{textwrap.indent(numbers, ' ' * 8)},\n    ),\n")


if __name__ == "__main__":
    main()
