"""Learning-rate schedules: pure functions of (step, spec).

- `step` counts the optimizer steps done before, so the first step has 0. `train.steps` never enters, so a run can be
  extended as long as its schedule has not ended.
- Warm-up: step t of the first `warmup_steps` has (t + 1) / `warmup_steps` of the rate (Goyal et al. 2017, section 2.2).
- `horizon` is the step at which a schedule ends. The rate reaches zero there, so the last step before has a small one.

A schedule of the user's own is a function with the same arguments, `experiments.parts.mine:schedule`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from gptlab.errors import BadInputError
from gptlab.part_names import is_part
from gptlab.parts import failure, resolve
from gptlab.spec import TrainSpec


class Schedule(Protocol):
    """`train.schedule`."""

    def __call__(self, step: int, spec: TrainSpec) -> float:
        """Return the learning rate of a step: finite, not negative, and a function of the arguments only."""


def learning_rates(spec: TrainSpec) -> Callable[[int], float]:
    """Return the function that maps the number of steps done to the learning rate of the next step.

    It raises BadInputError where the schedule returns something else than a learning rate.

    Raises:
        BadInputError: The schedule is a part that is gone.
    """
    return partial(_learning_rate, resolve("train.schedule", spec.schedule), spec)


def learning_rate(step: int, spec: TrainSpec) -> float:
    """Return the learning rate of the step that follows `step` steps.

    Raises:
        BadInputError: The schedule is a part that is gone, or returns something else than a learning rate.
    """
    return learning_rates(spec)(step)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, spec: TrainSpec) -> None:
    """Set the rate of a step. Groups that began with another rate than the spec's keep their ratio to it.

    A rate that is a tensor is overwritten in place, because a CUDA graph reads it from there.
    """
    for group in optimizer.param_groups:
        current = group["lr"]
        if "initial_lr" not in group:  # torch's own schedulers use this key, too
            group["initial_lr"] = current.item() if isinstance(current, torch.Tensor) else current
        new = _scaled(group["initial_lr"], rate, spec.learning_rate)
        if isinstance(current, torch.Tensor):
            current.fill_(new)
        else:
            group["lr"] = new


def constant(step: int, spec: TrainSpec) -> float:
    """Return the spec's rate, after the warm-up."""
    return spec.learning_rate * _warmup(step, spec)


def linear(step: int, spec: TrainSpec) -> float:
    """Decay linearly from the end of the warm-up to zero at the horizon (Devlin et al. 2019, appendix A.2)."""
    return spec.learning_rate * _warmup(step, spec) * _remaining(step, spec.warmup_steps, _horizon(spec))


def cosine(step: int, spec: TrainSpec) -> float:
    """Decay to zero at the horizon along half a cosine (Loshchilov and Hutter 2017, section 3)."""
    remaining = _remaining(step, spec.warmup_steps, _horizon(spec))
    return spec.learning_rate * _warmup(step, spec) * 0.5 * (1 - math.cos(math.pi * remaining))


def wsd(step: int, spec: TrainSpec) -> float:
    """Warm up, stay stable, then decay linearly over the last `decay_steps` (Hu et al. 2024, section 4; WSD).

    Without a horizon the stable part never ends.
    """
    rate = constant(step, spec)
    if spec.horizon is None:
        return rate
    return rate * _remaining(step, spec.horizon - spec.decay_length, spec.horizon)


def _learning_rate(schedule: Schedule, spec: TrainSpec, step: int) -> float:
    if not is_part(spec.schedule):
        return schedule(step, spec)
    try:
        rate = schedule(step, spec)
    except Exception as error:  # a user's function can raise anything
        raise failure("train.schedule", spec.schedule, error) from error
    try:
        number = float(rate)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadInputError(
            f"train.schedule is {spec.schedule}, which returns {rate!r:.100} at step {step}; "
            "a learning rate is finite and not negative"
        )
    return number


def _warmup(step: int, spec: TrainSpec) -> float:
    return (step + 1) / spec.warmup_steps if step < spec.warmup_steps else 1.0


def _remaining(step: int, start: int, end: int) -> float:
    """Return 1 up to `start`, 0 from `end` on, and linear in between."""
    return min(max((end - step) / (end - start), 0.0), 1.0)


def _horizon(spec: TrainSpec) -> int:
    assert spec.horizon is not None, "validated"  # noqa: S101 - `TrainSpec` requires it
    return spec.horizon


def _scaled(base: float, rate: float, learning_rate: float) -> float:
    if rate == learning_rate:
        return base
    return rate if base == learning_rate or not learning_rate else base * (rate / learning_rate)
