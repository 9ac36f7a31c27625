"""Unusual steps: spikes are found, falling curves are not, and the report links them to their text."""

import numpy as np
from pandas import DataFrame

from analysis import unusual


def metrics(loss, every=10):
    steps = every * np.arange(1, len(loss) + 1)
    return DataFrame({"run": "a-s0", "step": steps, "train/loss": loss, "optim/grad_norm": 1.0})


def test_a_spike_is_found_with_its_steps_and_a_falling_curve_has_none():
    curve = 3 + 7 * np.exp(-np.arange(200) / 15) + np.random.default_rng(0).normal(0, 0.02, 200)
    assert unusual.unusual_steps(metrics(curve)) == []
    for at in (1, 50, 198):
        spiked = curve.copy()
        spiked[at] += 2
        (step,) = unusual.unusual_steps(metrics(spiked))
        assert (step.step, step.first) == (10 * (at + 1), 10 * at)
        assert step.command == f"gptlab batch a-s0@{10 * at}"
    assert f"over steps {10 * at} to {10 * at + 9}" in unusual.sentences(metrics(spiked))[0]


def test_runs_without_a_spread_are_not_judged():
    assert unusual.unusual_steps(metrics(np.ones(100))) == []
    assert unusual.unusual_steps(metrics(np.r_[np.ones(20), 9.0])) == []
    assert unusual.unusual_steps(metrics(np.r_[np.full(50, np.nan), np.inf])) == []
