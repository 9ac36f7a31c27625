"""The statistics agree with published numbers, SciPy and simulations."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats

from analysis import stats

SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
"""Hours of sleep gained with two drugs by ten patients (Student 1908), the data of R's `sleep`."""


def test_a_paired_difference_equals_students_example() -> None:
    difference = stats.paired_by_seed(SLEEP_1, SLEEP_2)
    # R: t.test(extra ~ group, data = sleep, paired = TRUE): t = -4.0621, df = 9, p = 0.002833, 0.7001142 to 2.4598858
    assert difference.mean == pytest.approx(1.58)
    assert (difference.low, difference.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert difference.p == pytest.approx(0.002833, abs=5e-7)
    assert difference.mean / difference.se == pytest.approx(4.0621, abs=5e-5)
    assert difference.n == 10


def test_an_unpaired_difference_equals_welchs_t_test() -> None:
    difference = stats.unpaired(SLEEP_1, SLEEP_2)
    # R: t.test(extra ~ group, data = sleep): t = -1.8608, df = 17.776, p = 0.07939, -3.3654832 to 0.2054832
    assert (difference.low, difference.high) == pytest.approx((-0.2054832, 3.3654832), abs=1e-7)
    assert difference.p == pytest.approx(0.07939, abs=5e-6)


def test_the_interval_of_a_mean_uses_the_tabulated_t() -> None:
    estimate = stats.estimate([1.0, 2.0, 3.0])
    # 4.303 is the 97.5% point of t with two degrees of freedom in any table.
    assert (estimate.mean, estimate.se, estimate.n) == (2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert (estimate.high - estimate.mean) / estimate.se == pytest.approx(4.303, abs=5e-4)
    assert estimate.mean - estimate.low == pytest.approx(estimate.high - estimate.mean)


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_95_percent_interval_covers_95_percent_of_2000_simulated_experiments(seeds: int) -> None:
    random = np.random.default_rng(0)
    tries = 2_000
    seed_effects = random.normal(5.0, 1.0, (tries, seeds))  # the effect of a seed on both experiments
    first, second = (seed_effects + random.normal(mean, 0.1, (tries, seeds)) for mean in (0.0, 0.05))
    means = [stats.estimate(values) for values in first]
    paired = [stats.paired_by_seed(*values) for values in zip(first, second, strict=True)]
    covered = [
        sum(estimate.low <= 5.0 <= estimate.high for estimate in means) / tries,
        sum(estimate.low <= 0.05 <= estimate.high for estimate in paired) / tries,
    ]
    assert covered == pytest.approx([0.95, 0.95], abs=3 * math.sqrt(0.95 * 0.05 / tries))
    assert np.mean([estimate.se for estimate in paired]) < np.mean([estimate.se for estimate in means]) / 4


def test_p_values_are_uniform_without_a_difference() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 2_000, 4))
    p = [stats.paired_by_seed(*values).p for values in zip(first, second, strict=True)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_the_sign_flip_test_is_exact_and_needs_ten_seeds() -> None:
    differences = np.array(SLEEP_2) - np.array(SLEEP_1)
    means = np.abs([np.mean(differences * signs) for signs in product([-1, 1], repeat=10)])
    expected = np.mean(means >= differences.mean() - 1e-12)
    assert stats.paired_by_seed(SLEEP_1, SLEEP_2).sign_flip_p == pytest.approx(expected)
    assert stats.paired_by_seed(np.zeros(10), np.arange(1, 11)).sign_flip_p == pytest.approx(2 / 2**10)
    assert math.isnan(stats.paired_by_seed(SLEEP_1[:9], SLEEP_2[:9]).sign_flip_p)
    many = stats.paired_by_seed(np.zeros(20), np.arange(1, 21))
    assert many.sign_flip_p == pytest.approx(2 / 10_000)
    assert many == stats.paired_by_seed(np.zeros(20), np.arange(1, 21))


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_equal_published_tables(effect: float, seeds: int) -> None:
    # Cohen's small, medium and large effects, paired, two-sided 5%, power 80%: the values of R's power.t.test.
    assert stats.seeds_needed(effect, 1.0) == seeds
    assert stats.seeds_needed(-effect / 7, 1 / 7) == seeds


def test_seeds_needed_give_a_power_of_80_percent() -> None:
    random = np.random.default_rng(2)
    seeds = int(stats.seeds_needed(0.12, 0.1))
    pairs = random.normal(0.12, 0.1, (2_000, seeds))
    seen = np.mean([stats.paired_by_seed(np.zeros(seeds), differences).p < 0.05 for differences in pairs])
    assert 0.78 < seen < 0.87


def test_seeds_needed_in_limiting_cases() -> None:
    assert stats.seeds_needed(1.0, 0.0) == 2
    assert stats.seeds_needed(100.0, 1.0) == 2
    assert stats.seeds_needed(0.0, 1.0) == math.inf
    assert stats.seeds_needed(1e-9, 1.0) == math.inf
    assert math.isnan(stats.seeds_needed(1.0, math.nan))


def test_holm_correction_equals_that_of_r_and_ignores_nan() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(…, "holm")
    assert stats.holm([0.04, math.nan, 0.01]) == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)
    assert stats.holm([]) == []
    assert math.isnan(stats.holm([math.nan])[0])


def test_a_diverged_seed_is_never_dropped() -> None:
    estimate = stats.estimate([5.0, math.inf, 5.1])
    assert (estimate.mean, estimate.n) == (math.inf, 3)
    assert all(map(math.isnan, (estimate.se, estimate.low, estimate.high)))
    difference = stats.paired_by_seed([5.0, 5.0, 5.0], [5.1, math.inf, 5.1])
    assert (difference.mean, difference.n) == (math.inf, 3)
    assert math.isnan(difference.p)
    assert math.isnan(stats.paired_by_seed([5.0, math.inf], [5.1, math.inf]).mean)
    assert stats.unpaired([5.0, 5.1], [5.1, math.inf]).mean == math.inf


def test_too_few_values_have_no_interval() -> None:
    assert (stats.estimate([5.0]).mean, stats.estimate([5.0]).n) == (5.0, 1)
    for estimate in (
        stats.estimate([5.0]),
        stats.estimate([]),
        stats.paired_by_seed([1.0], [2.0]),
        stats.unpaired([1], []),
    ):
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.se)


def test_equal_values_have_an_interval_of_zero_width() -> None:
    assert stats.estimate([5.0, 5.0]) == stats.Estimate(5.0, 0.0, 5.0, 5.0, 2)
    assert stats.paired_by_seed([1.0, 2.0], [2.0, 3.0]).p == 0.0
    assert stats.paired_by_seed([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_pairing_values_of_different_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 3"):
        stats.paired_over_windows([1, 2], [1, 2, 3])
