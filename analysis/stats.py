"""How sure a number is: means, differences and their intervals, by scipy and statsmodels.

- Seeds are replicates: an estimate over seeds says how far another seed of the same experiment could be.
- An estimate over validation windows says how far another part of the text could be, and nothing about another seed.
- A diverged run has an infinite loss. It makes a mean infinite and leaves no interval; it is never dropped.
"""

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t and its inverse: scipy.stats.t, without its overhead
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

CONFIDENCE = 0.95
POWER = 0.8
SIGN_FLIP_FROM = 10
"""Pairs from which on a sign-flip test can tell anything: with five its p-value is never below 2 / 2⁵ = 0.0625."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is; NaN where the values do not tell."""

    mean: float
    se: float
    """Standard error of the mean."""
    low: float
    """Lower end of the 95% t-interval."""
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """How much larger the second is than the first: the mean, and how sure it is."""

    mean: float
    se: float
    low: float
    """Lower end of the 95% t-interval."""
    high: float
    p: float
    """Of the two-sided t-test for no difference."""
    n: int
    """Pairs, or values of the smaller side where there are none."""
    sd: float
    """Standard deviation of the differences of pairs; NaN where there are none."""
    sign_flip_p: float = math.nan
    """Of the two-sided sign-flip test, which assumes no normal distribution; NaN below ten pairs."""


def estimate(values: ArrayLike) -> Estimate:
    """The mean of replicates (of seeds, or of validation windows) with its standard error and t-interval.

    A single value has neither, and with a value that is not finite there is no interval.
    """
    array = _array(values)
    n = len(array)
    if n < 2 or not np.isfinite(array).all():
        return Estimate(float(array.mean()) if n else math.nan, math.nan, math.nan, math.nan, n)
    mean, se = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * se
    return Estimate(mean, se, mean - half, mean + half, n)


def paired_by_seed(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of `second − first` over seeds that both experiments were run with, in the same order.

    Runs of one seed share their batches and initial weights, so much of what a seed does cancels. What is left is
    taken as normal by the t-test; from ten seeds on a sign-flip test that does not stands beside it.
    """
    return _of_pairs(first, second)


def paired_over_windows(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of `second − first` over the validation windows of two single runs, in the same order.

    It says whether these two runs differ on other windows of such text. It does not say whether the experiments do:
    with another seed each of them is another run. Windows side by side resemble each other, so it is rather too sure.
    """
    return _of_pairs(first, second)


def unpaired(first: ArrayLike, second: ArrayLike) -> Difference:
    """The difference of the means (Welch's test), for experiments that share no seeds or see other batches."""
    a, b = _array(first), _array(second)
    n, mean = min(len(a), len(b)), _mean_difference(a, b)
    if n < 2 or not math.isfinite(mean):
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, n, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all values alike
        test = scipy.stats.ttest_ind(b, a, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    se = math.hypot(scipy.stats.sem(a), scipy.stats.sem(b))
    return Difference(mean, se, float(interval.low), float(interval.high), float(test.pvalue), n, math.nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, raised for their number so that all may be looked at (Holm 1979); NaN stays and does not count."""
    array = _array(p_values)
    known = ~np.isnan(array)
    if known.any():
        array[known] = multipletests(array[known], method="holm")[1]
    return [float(p) for p in array]


def seeds_needed(difference: float, sd: float) -> float:
    """How many seeds a paired t-test needs to see a difference at the 5% level in four of five tries.

    Args:
        difference: The true mean difference, in nats per token or whatever `sd` is in.
        sd: Standard deviation of the differences between runs of the same seed.

    Returns:
        A whole number of at least 2; infinite where there is no difference, NaN where the deviation is unknown.
    """
    if math.isnan(difference) or math.isnan(sd):
        return math.nan
    if difference == 0:
        return math.inf
    effect = min(abs(difference) / sd if sd else math.inf, 1e3)
    if effect < 1e-4:
        return math.inf  # a billion, or more
    enough = range(2, 2**31)
    return float(enough[bisect.bisect_left(enough, POWER, key=lambda seeds: _power(effect, seeds))])


def _power(effect: float, seeds: int) -> float:
    """The power of a paired t-test. The noncentral t is NaN at scattered points, most of them where it is 1."""
    for nudge in (0, 1e-7, 1e-6, 1e-5):
        power = float(TTestPower().power(effect * (1 + nudge), seeds, 1 - CONFIDENCE))
        if math.isfinite(power):
            return power
    return 1.0


def _of_pairs(first: ArrayLike, second: ArrayLike) -> Difference:
    a, b = _array(first), _array(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    with np.errstate(invalid="ignore"):  # two diverged runs: inf − inf tells nothing
        differences = b - a
    about = estimate(differences)
    if math.isnan(about.se):
        return Difference(about.mean, about.se, about.low, about.high, math.nan, about.n, math.nan)
    p = 2 * float(stdtr(about.n - 1, -abs(about.mean / about.se))) if about.se else float(about.mean == 0)
    sd = float(differences.std(ddof=1))
    return Difference(about.mean, about.se, about.low, about.high, p, about.n, sd, _sign_flip_p(differences))


def _sign_flip_p(differences: NDArray[np.float64]) -> float:
    if len(differences) < SIGN_FLIP_FROM:
        return math.nan
    # All 2ⁿ signs up to n = 13, else as many at random; one sample is what makes scipy flip signs.
    test = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9_999, vectorized=True, rng=0
    )
    return float(test.pvalue)


def _mean_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if not len(a) or not len(b):
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(b.mean() - a.mean())


def _array(values: ArrayLike) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
