"""Means and differences with confidence intervals and p-values, computed with scipy and statsmodels.

- Seeds are replicates: an estimate over seeds measures the uncertainty from the choice of seed.
- An estimate over validation windows measures the uncertainty from the choice of text, not of seed.
- A diverged run has an infinite loss and is never dropped: the mean is infinite and there is no interval.
"""

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # it imports `scipy.stats` when a test is computed: this takes a second
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # CDF of Student's t and its inverse: faster than scipy.stats.t

CONFIDENCE = 0.95
POWER = 0.8
MIN_SIGN_FLIP_PAIRS = 10
"""Minimum number of pairs for the sign-flip test. With five pairs its p-value is never below 2 / 2⁵ = 0.0625."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty. Fields that the values do not determine are NaN."""

    mean: float
    se: float
    """Standard error of the mean."""
    low: float
    """Lower end of the 95% t-interval."""
    high: float
    """Upper end of the 95% t-interval."""
    n: int
    """Number of values."""


@dataclass(frozen=True)
class Difference:
    """The mean of `second − first` with its uncertainty. Fields that the values do not determine are NaN."""

    mean: float
    se: float
    low: float
    """Lower end of the 95% t-interval."""
    high: float
    """Upper end of the 95% t-interval."""
    p: float
    """p-value of the two-sided t-test for no difference."""
    n: int
    """Number of pairs, or of values in the smaller group if they are not paired."""
    sd: float
    """Standard deviation of the differences within pairs; NaN if the values are not paired."""
    sign_flip_p: float = math.nan
    """p-value of the two-sided sign-flip test, which does not assume normality; NaN below ten pairs."""


def estimate(values: ArrayLike) -> Estimate:
    """The mean of replicates (seeds or validation windows) with its standard error and 95% t-interval.

    There is no standard error and no interval for a single value, or if a value is not finite.
    """
    array = _array(values)
    n = len(array)
    if n < 2 or not np.isfinite(array).all():
        return Estimate(float(array.mean()) if n else math.nan, math.nan, math.nan, math.nan, n)
    mean, se = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * se
    return Estimate(mean, se, mean - half, mean + half, n)


def paired_by_seed(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of `second − first` over the seeds that two experiments share, given in the same order.

    Runs with the same seed share their batches and initial weights, so much of the variation between seeds cancels. The
    paired t-test assumes that the differences are normal. The sign-flip test does not; it needs at least ten seeds.
    """
    return _paired(first, second)


def paired_over_windows(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of `second − first` over the validation windows of two single runs, given in the same order.

    The interval is for these two runs on other windows of similar text. It does not include the variation between
    seeds. Adjacent windows are correlated, so the interval is somewhat too narrow.
    """
    return _paired(first, second)


def unpaired(first: ArrayLike, second: ArrayLike) -> Difference:
    """The difference of the means (Welch's t-test), for experiments without common seeds or with different batches."""
    a, b = _array(first), _array(second)
    n, mean = min(len(a), len(b)), _mean_difference(a, b)
    if n < 2 or not math.isfinite(mean):
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, n, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all values are equal
        test = scipy.stats.ttest_ind(b, a, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    se = math.hypot(scipy.stats.sem(a), scipy.stats.sem(b))
    return Difference(mean, se, float(interval.low), float(interval.high), float(test.pvalue), n, math.nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for multiple comparisons (Holm 1979). NaN stays NaN and does not count."""
    array = _array(p_values)
    known = ~np.isnan(array)
    if known.any():
        from statsmodels.stats.multitest import multipletests  # imports `scipy.stats`

        array[known] = multipletests(array[known], method="holm")[1]
    return [float(p) for p in array]


def seeds_needed(difference: float, sd: float) -> float:
    """The number of seeds with which a paired t-test detects a difference at the 5% level with a power of 80%.

    Args:
        difference: The true mean difference, in the unit of `sd`.
        sd: Standard deviation of the differences between runs with the same seed.

    Returns:
        A whole number of at least 2; infinite if the difference is zero, NaN if an argument is NaN.
    """
    if math.isnan(difference) or math.isnan(sd):
        return math.nan
    if difference == 0:
        return math.inf
    effect = min(abs(difference) / sd if sd else math.inf, 1e3)
    if effect < 1e-4:
        return math.inf  # a billion or more
    enough = range(2, 2**31)
    return float(enough[bisect.bisect_left(enough, POWER, key=lambda seeds: _power(effect, seeds))])


def _power(effect: float, seeds: int) -> float:
    """The power of a paired t-test. SciPy's noncentral t is NaN at scattered points, mostly where the power is 1."""
    from statsmodels.stats.power import TTestPower  # imports `scipy.stats`

    for nudge in (0, 1e-7, 1e-6, 1e-5):
        power = float(TTestPower().power(effect * (1 + nudge), seeds, 1 - CONFIDENCE))
        if math.isfinite(power):
            return power
    return 1.0


def _paired(first: ArrayLike, second: ArrayLike) -> Difference:
    a, b = _array(first), _array(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    with np.errstate(invalid="ignore"):  # inf − inf of two diverged runs
        differences = b - a
    mean = estimate(differences)
    if math.isnan(mean.se):
        return Difference(mean.mean, mean.se, mean.low, mean.high, math.nan, mean.n, math.nan)
    p = 2 * float(stdtr(mean.n - 1, -abs(mean.mean / mean.se))) if mean.se else float(mean.mean == 0)
    sd = float(differences.std(ddof=1))
    return Difference(mean.mean, mean.se, mean.low, mean.high, p, mean.n, sd, _sign_flip_p(differences))


def _sign_flip_p(differences: NDArray[np.float64]) -> float:
    if len(differences) < MIN_SIGN_FLIP_PAIRS:
        return math.nan
    # With one sample, SciPy flips signs: all 2ⁿ combinations up to n = 13, otherwise 9,999 random ones.
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
