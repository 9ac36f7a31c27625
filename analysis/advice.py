"""Commands that a report advises."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pandas import isna

from analysis import columns
from gptlab.spec import DataSpec

SEEDS = 3
"""The smallest number of seeds that gives an interval of some use: with two, it is thirteen standard errors wide."""

TEXT = "data.text"
STARTS = ("branch", "initial_weights")
"""Columns of runs that start from another run's weights."""


def add_seeds(run: Mapping[Any, Any], seeds: Iterable[int], varied: Iterable[str]) -> str:
    """The command that trains an experiment with these seeds; complete runs are left as they are.

    Args:
        run: A row of `load.runs()`: one of its runs.
        seeds: All seeds that it should have, the present ones included.
        varied: The columns that differ between the runs of its name; see `compare.differing_columns`.
    """
    if not all(isna(run[column]) for column in STARTS):
        return f"the command that started {run['run']}, with other seeds"
    listed = ",".join(map(str, sorted(seeds)))
    words = ["gptlab", "run", str(run["name"]), "--seeds", listed, "--steps", str(run["steps"])]
    if run[TEXT] != DataSpec.model_fields["text"].default:
        words += ["--text", str(run[TEXT])]
    for key in varied:
        if key in columns.SPEC and key != TEXT:
            words += ["--set", f"{key}={_value(run[key])}"]
    return f"`{' '.join(map(shlex.quote, words))}`"


def wanted_seeds(*present: Iterable[int]) -> list[int]:
    """The seeds that experiments should share: all that one of them has, and at least `SEEDS`."""
    seeds = sorted({int(seed) for group in present for seed in group})
    unused = (seed for seed in range(len(seeds) + SEEDS) if seed not in seeds)
    return sorted([*seeds, *(next(unused) for _ in range(SEEDS - len(seeds)))])


def _value(value: Any) -> str:
    """A setting as `--set` takes it."""
    return "null" if isna(value) else str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
