"""Sweeps: named sets of runs that answer one question, and the grids and random points that they are made of.

    lr = Sweep("learning-rate", why="Which one?", runs=grid(tiny, {"train.learning_rate": log_space(1e-4, 1e-2, 7)}))

A point keeps the name of its base, so that a run that exists already is part of every sweep that contains it.
Numbers are rounded to four significant digits: they are readable, and the same on every machine.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from random import Random
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from gptlab.errors import BadInputError
from gptlab.spec import NAME_PATTERN, Experiment, fields_of, unknown_field

MAX_POINTS = 10_000
MAX_DRAWS = 100
"""Draws per random point; more repeats of earlier points mean that there are no others."""
SIGNIFICANT_DIGITS = 4

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, range) else values


class Sweep(BaseModel):
    """A question, and the runs that answer it: each point with each seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=NAME_PATTERN)
    """At most 64 lower-case letters, digits, dots, dashes and underscores."""
    why: str = Field(min_length=1)
    """The question that this sweep answers."""
    runs: tuple[Experiment, ...] = Field(max_length=MAX_POINTS)
    """The points: variants of experiments in `experiments/`, such as `grid` and `random` return."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_as_tuple)] = (0,)
    """The seeds of each point, such as `range(3)`."""

    def __init__(self, name: str, **fields: Any) -> None:
        """Create a sweep; all fields but the name are keyword arguments."""
        super().__init__(name=name, **fields)

    @field_validator("runs", "seeds")
    @classmethod
    def _is_not_empty(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("a sweep has at least one run and one seed")
        return values

    @field_validator("seeds")
    @classmethod
    def _has_each_seed_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ValueError(f"seed {repeated[0]} is there twice")
        return seeds


@dataclass(frozen=True)
class Distribution:
    """A continuous distribution of `random`; see `uniform` and `log_uniform`."""

    low: float
    high: float
    logarithmic: bool

    def at(self, quantile: float) -> float:
        """Return the value below which this part of the distribution lies."""
        if self.logarithmic:
            return _rounded(self.low * (self.high / self.low) ** quantile)
        return _rounded(self.low + (self.high - self.low) * quantile)


def uniform(low: float, high: float) -> Distribution:
    """Return the uniform distribution between two numbers.

    Raises:
        BadInputError: They are not finite, or the first is not the smaller one.
    """
    _check_range("uniform", low, high)
    return Distribution(low, high, logarithmic=False)


def log_uniform(low: float, high: float) -> Distribution:
    """Return the distribution between two positive numbers whose logarithm is uniform.

    Raises:
        BadInputError: They are not finite and positive, or the first is not the smaller one.
    """
    _check_range("log_uniform", low, high, positive=True)
    return Distribution(low, high, logarithmic=True)


def log_space(low: float, high: float, n: int) -> list[float]:
    """Return n numbers from `low` to `high` with equal ratios, rounded to four significant digits except the ends.

    Raises:
        BadInputError: `low` and `high` are not finite and positive, the first is not the smaller one, `n` is below 2,
            or numbers that are so close are equal when rounded.
    """
    _check_range("log_space", low, high, positive=True)
    if n < 2:
        raise BadInputError(f"log_space needs at least 2 numbers, not {n}")
    between = log_uniform(low, high)
    numbers = [low, *(between.at(i / (n - 1)) for i in range(1, n - 1)), high]
    if len(set(numbers)) < n:
        raise BadInputError(
            f"log_space({low:g}, {high:g}, {n}): the numbers are too close for {SIGNIFICANT_DIGITS} significant "
            "digits; take fewer"
        )
    return numbers


def grid(base: Experiment, values: Mapping[str, Sequence[Any]]) -> tuple[Experiment, ...]:
    """Return a variant of an experiment for each combination of values; those of the last key change fastest.

    Args:
        base: The experiment.
        values: The values by dotted key, such as `{"train.learning_rate": [1e-3, 3e-3]}`.

    Raises:
        BadInputError: There is no key or a key has no values, a key does not exist, or a value is out of range.
    """
    _check_keys("grid", base, values)
    if math.prod(map(len, values.values())) > MAX_POINTS:
        raise BadInputError(f"grid: there are more than {MAX_POINTS} combinations of values")
    return tuple(base.with_changes(dict(zip(values, point, strict=True))) for point in product(*values.values()))


def random(
    base: Experiment, values: Mapping[str, Sequence[Any] | Distribution], *, n: int, seed: int = 0
) -> tuple[Experiment, ...]:
    """Return n different variants of an experiment with random values. The same arguments give the same ones.

    A larger n adds variants, and another key leaves the values of the others as they are.

    Args:
        base: The experiment.
        values: By dotted key, a list of values to choose from, or a distribution: `uniform` or `log_uniform`.
        n: The number of variants.
        seed: Seed for the values; it has nothing to do with the seeds of the runs.

    Raises:
        BadInputError: There is no key or a key has no values, a key does not exist, a value is out of range, or there
            are fewer than n different variants.
    """
    _check_keys("random", base, values)
    if not 1 <= n <= MAX_POINTS:
        raise BadInputError(f"random: n must be 1 to {MAX_POINTS}, not {n}")
    points: list[dict[str, Any]] = []
    for point in islice(_draws(values, seed), MAX_DRAWS * n):
        if point not in points:
            points.append(point)
        if len(points) == n:
            return tuple(map(base.with_changes, points))
    raise BadInputError(f"random: there are only {len(points)} different combinations of values, not {n}")


def _draws(values: Mapping[str, Sequence[Any] | Distribution], seed: int) -> Iterator[dict[str, Any]]:
    """Yield random points without end. Each key has its own random numbers."""
    # Python guarantees the same `Random.random()` from the same seed in all versions.
    streams = {key: Random(f"{seed} {key}") for key in values}  # noqa: S311 - no secret depends on it
    while True:
        yield {key: _at(values[key], stream.random()) for key, stream in streams.items()}


def _at(choices: Sequence[Any] | Distribution, quantile: float) -> Any:
    return choices.at(quantile) if isinstance(choices, Distribution) else choices[int(quantile * len(choices))]


def _check_keys(function: str, base: Experiment, values: Mapping[str, Any]) -> None:
    if not values:
        raise BadInputError(f'{function} is empty: give values by key, such as {{"train.learning_rate": [1e-3, 3e-3]}}')
    known = dict(fields_of(Experiment))
    for key, choices in values.items():
        if key in {"name", "why"}:
            raise BadInputError(f"{function} cannot vary '{key}': its points keep that of experiment {base.name}")
        if key not in known:
            raise unknown_field(key, known)
        if not isinstance(choices, Sequence | Distribution) or isinstance(choices, str):
            raise BadInputError(f"{function}: the values of {key} must be a list, not {choices!r:.100}")
        if not isinstance(choices, Distribution) and not len(choices):
            raise BadInputError(f"{function} is empty: {key} has no values")


def _check_range(function: str, low: float, high: float, *, positive: bool = False) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not positive)):
        kind = "positive numbers" if positive else "numbers"
        raise BadInputError(f"{function} needs two {kind}, the smaller one first, not {low} and {high}")


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
