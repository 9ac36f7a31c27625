"""Commands that a report advises."""

import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np
from pandas import DataFrame, isna

from analysis import columns, compare
from gptlab.spec import DataSpec

SEEDS = 3
"""The smallest number of seeds that gives an interval of some use: with two, it is thirteen standard errors wide."""

TEXT = "data.text"
STARTS = ("branch", "initial_weights")
"""Columns of runs that start from another run's weights."""


def add_seeds(runs: DataFrame, experiment: str, seeds: Iterable[int]) -> str:
    """The command that trains an experiment with these seeds; complete runs are left as they are.

    Args:
        runs: Rows of `load.runs()`.
        experiment: The experiment (`NAME-HASH8`).
        seeds: All seeds that it should have, the present ones included.
    """
    own = runs[runs["experiment"] == experiment].iloc[0]
    listed = ",".join(map(str, sorted(seeds)))
    if own[list(STARTS)].notna().any():
        return f"the command that started {own['run']}, with other seeds"
    differing = compare.differing_columns(runs[runs["name"] == own["name"]])
    words = ["gptlab", "run", str(own["name"]), "--seeds", listed, "--steps", str(own["steps"])]
    if own[TEXT] != DataSpec.model_fields["text"].default:
        words += ["--text", str(own[TEXT])]
    for key in differing:
        if key in columns.SPEC and key != TEXT:
            words += ["--set", f"{key}={_value(own[key])}"]
    return f"`{' '.join(map(shlex.quote, words))}`"


def wanted_seeds(*present: Iterable[int]) -> list[int]:
    """The seeds that experiments should share: all that one of them has, and at least `SEEDS`."""
    seeds = sorted({int(seed) for group in present for seed in group})
    unused = (seed for seed in range(len(seeds) + SEEDS) if seed not in seeds)
    return sorted([*seeds, *(next(unused) for _ in range(SEEDS - len(seeds)))])


def _value(value: Any) -> str:
    """A setting as `--set` takes it."""
    return "null" if isna(value) else str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
