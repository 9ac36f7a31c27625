"""Decisions by repeated t-intervals: their error when one looks after every seed, and when they stop."""

import math

import numpy as np
import pytest

from analysis.decision_levels import levels, smallest_p_values
from analysis.stats import paired_by_seed
from gptlab.errors import BadInputError
from gptlab.sequential import MAX_COMPARISONS, MAX_SEEDS, decide, design, looks, seeds_to_reach
from gptlab.sequential_levels import LEVELS

HISTORIES = 2000


def histories(mean: float = 0.0, seeds: int = 20, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (HISTORIES, seeds))


def test_of_two_equal_experiments_at_most_six_percent_are_called_different_when_peeking_after_every_seed():
    plan = design(margin=1e-9, max_seeds=20)  # never practically equal, so that all seeds are looked at
    verdicts = [decide(plan, history).verdict for history in histories().tolist()]
    different = sum(verdict in {"better", "worse"} for verdict in verdicts) / HISTORIES
    assert 0.035 < different <= 0.06
    assert verdicts.count("undecided") == HISTORIES * (1 - different)


def test_all_intervals_of_a_decision_cover_the_difference_together_however_it_stops():
    plan = design(margin=0.9, max_seeds=20)
    last = [decide(plan, history) for history in histories(0.5, seed=2).tolist()]
    assert {"worse", "equal", "undecided"} <= {look.verdict for look in last}
    covered = sum(look.low <= 0.5 <= look.high for look in last) / HISTORIES
    assert covered > 0.94


def test_a_fixed_interval_would_err_far_more_often():
    """The premise: peeking with a 95% t-interval calls equal experiments different four times as often."""
    assert (smallest_p_values(histories())[:, -1] < 0.05).mean() > 0.2


def test_decisions_under_one_headline_share_the_error():
    plan = design(margin=1e-9, max_seeds=20, comparisons=5)
    verdicts = [decide(plan, history).verdict for history in histories(seed=3).tolist()]
    assert sum(verdict != "undecided" for verdict in verdicts) / HISTORIES < 0.02


def test_the_levels_are_those_of_the_simulation():
    again = levels(histories=20_000, seed=1, max_seeds=20)
    assert [len(row) for row in LEVELS] == [MAX_SEEDS - 2] * MAX_COMPARISONS
    assert LEVELS[0][0] == 0.05
    for comparisons, seeds in ((1, 20), (1, 5), (3, 20)):
        level = LEVELS[comparisons - 1][seeds - 3]
        assert again[comparisons - 1, seeds - 3] == pytest.approx(level, rel=0.15)
    assert 0.0074 < LEVELS[0][17] < 0.0079


@pytest.mark.parametrize("row", LEVELS)
def test_a_larger_budget_has_a_lower_level(row):
    assert list(row) == sorted(row, reverse=True)


def test_the_interval_is_the_paired_t_interval_at_the_nominal_level():
    differences = [0.021, 0.013, 0.034, 0.018]
    plan = design(margin=0.001, max_seeds=3)
    (look,) = looks(plan, differences[:3])
    expected = paired_by_seed([0.0] * 3, differences[:3])
    assert plan.level == 0.05
    assert (look.mean, look.low, look.high) == pytest.approx((expected.mean, expected.low, expected.high))
    wider = decide(design(margin=0.001, max_seeds=20), differences[:3])
    assert wider.high - wider.low > 2 * (look.high - look.low)


@pytest.mark.parametrize(
    ("differences", "verdict", "seeds"),
    [
        ([0.1], None, None),
        ([0.1, 0.1], None, None),
        ([0.1, 0.101, 0.099], "worse", 3),
        ([-0.1, -0.101, -0.099, 5.0], "better", 3),
        ([0.001, -0.001, 0.0], "equal", 3),
        ([0.005, 0.0051, 0.0049], "equal", 3),
        ([0.0, 0.0, 0.0], "equal", 3),
        ([0.1, 0.1, 0.1], "worse", 3),
        ([1.0, -1.0, 0.5], "open", 3),
        ([1.0, -1.0, 0.5, 0.2, -0.7], "undecided", 5),
        ([0.1, math.inf, 0.1, 0.1], "diverged", 2),
        ([0.1, 0.2, 5.0, math.nan], "diverged", 4),
    ],
)
def test_a_decision_stops_at_the_first_look_with_a_verdict(differences, verdict, seeds):
    look = decide(design(margin=0.02, max_seeds=5), differences)
    assert (look and look.verdict, look and look.seeds) == (verdict, seeds)


def test_the_budget_that_a_margin_needs():
    plan = design(margin=0.02, max_seeds=20)
    needed = seeds_to_reach(0.02, sd=0.04, comparisons=1)
    assert design(0.02, needed).interval(needed, 0.04) < 0.02 <= design(0.02, needed - 1).interval(needed - 1, 0.04)
    assert plan.interval(20, 0.04) > 0.02, "not within twenty seeds"
    assert seeds_to_reach(0.02, sd=1.0, comparisons=1) is None
    assert seeds_to_reach(0.02, sd=0.0, comparisons=1) == 3


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"margin": 0.0}, "--margin must be a positive number of nats/token, such as 0.02, not 0"),
        ({"margin": -0.02}, "not -0.02"),
        ({"margin": math.nan}, "not nan"),
        ({"margin": math.inf}, "not inf"),
        ({"margin": 0.02, "max_seeds": 2}, "--max-seeds must be 3 to 50, not 2"),
        ({"margin": 0.02, "max_seeds": 51}, "--max-seeds must be 3 to 50, not 51"),
        ({"margin": 0.02, "comparisons": 0}, "--comparisons must be 1 to 10, not 0"),
        ({"margin": 0.02, "comparisons": 11}, "not 11"),
    ],
)
def test_another_design_is_an_error(values, answer):
    with pytest.raises(BadInputError) as raised:
        design(**values)
    assert answer in str(raised.value)
