"""Ratios over blocks of windows and shares of passages have the right value and intervals that cover."""

import numpy as np
import pytest
from scipy import stats

from gptlab.explanation.estimates import BLOCKS, merge_blocks, ratio, share, share_difference


def test_a_ratio_with_equal_denominators_is_the_mean_with_its_t_interval():
    values = np.random.default_rng(0).normal(size=20)
    found = ratio(values, np.ones(20))
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), interval.low, interval.high))


def test_a_difference_of_ratios_over_the_same_blocks_is_paired():
    random = np.random.default_rng(0)
    first, tokens = random.normal(5, 1, size=30), np.full(30, 4)
    second = first - 0.5 + random.normal(0, 0.01, size=30)
    difference = ratio(second, tokens) - ratio(first, tokens)
    interval = stats.ttest_rel(second / 4, first / 4).confidence_interval()
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_a_ratio_without_a_denominator_or_with_a_single_block_has_no_interval():
    assert np.isnan(ratio([0.0, 0.0], [0, 0]).value)
    single = ratio([3.0], [2])
    assert (single.value, np.isnan(single.half)) == (1.5, True)


def test_blocks_without_the_token_do_not_narrow_an_interval():
    """A token that occurs in one block of 30 has no interval, and one in two blocks has one degree of freedom."""
    once, twice = np.eye(30)[0], np.eye(30)[0] + np.eye(30)[1]
    single = ratio(7 * once, once)
    assert (single.value, single.blocks, np.isnan(single.half)) == (7, 1, True)
    losses = np.random.default_rng(0).normal(5, 1, size=30) * twice
    found, alone = ratio(losses, twice), ratio(losses[:2], [1, 1])
    assert (found.value, found.half, found.blocks) == pytest.approx((alone.value, alone.half, 2))
    assert np.isnan((ratio(8 * once, once) - single).half)


def test_merged_blocks_keep_the_sums_and_the_order():
    sums = np.arange(1000.0)
    merged = merge_blocks(sums)
    assert (len(merged), merged.sum()) == (BLOCKS, sums.sum())
    assert (np.diff(merged) > 0).all()
    assert merge_blocks(sums[:7]).tolist() == sums[:7].tolist()


def test_intervals_over_blocks_cover_where_those_over_windows_do_not():
    """Losses of neighboring windows are correlated (an autoregressive process), and bins have unequal counts."""
    random, covered = np.random.default_rng(0), {"blocks": 0, "windows": 0}
    for _ in range(300):
        noise = random.normal(size=900 + 100)
        loss = np.empty(len(noise))
        loss[0] = noise[0]
        for index in range(1, len(noise)):
            loss[index] = 0.6 * loss[index - 1] + noise[index]
        counts = random.integers(1, 20, size=900)
        sums = counts * (5 + loss[100:])
        for kind, blocks in (("blocks", BLOCKS), ("windows", 900)):
            found = ratio(merge_blocks(sums, blocks), merge_blocks(counts, blocks))
            covered[kind] += found.low <= 5 <= found.high
    assert covered["windows"] < 0.8 * 300
    assert covered["blocks"] > 0.9 * 300


def test_a_share_has_the_score_interval():
    for hits in (0, 3, 50, 100):
        found = share(np.arange(100) < hits)
        expected = stats.binomtest(hits, 100).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(share(np.zeros(0, bool)).value)


@pytest.mark.parametrize("paired", [False, True])
def test_intervals_of_a_difference_of_shares_cover(paired):
    """Newcombe (1998): 56 of 70 against 48 of 80 is 0.0524 to 0.3339; in a simulation, 95% are covered."""
    found = share_difference(np.arange(80) < 48, np.arange(70) < 56, paired=False)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        shared = random.random(100) if paired else None
        first = (random.random(100) if shared is None else shared) < 0.05
        second = (random.random(100) if shared is None else (shared + 0.1 * random.random(100)) % 1) < 0.1
        truth = 0.05
        found = share_difference(first, second, paired=paired)
        covered += found.low <= truth <= found.high
    assert covered > 0.92 * 400
