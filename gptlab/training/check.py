"""Check an optimizer or a schedule of the user's own, or any other part, against the protocol of its field.

`check_part` is meant for tests of one's own, too: `assert all(check.passed for check in check_part(FIELD, NAME))`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gptlab.model import check as model_check
from gptlab.model import gpt
from gptlab.model.check import Check, Problem, run_checks
from gptlab.model.gpt import GPT
from gptlab.parts import resolve
from gptlab.spec import Experiment, TrainSpec
from gptlab.training import optimizer as optimizers
from gptlab.training.schedule import learning_rate, set_learning_rate

SMALL = model_check.SMALL.model_copy(update={"n_layer": 1})
HORIZON = 100
DESCENT_STEPS = 100


def check_part(field: str, name: str, experiment: Experiment | None = None) -> list[Check]:
    """Check what a field names, built in or a part.

    Args:
        field: The field's dotted key, such as `train.optimizer`.
        name: The field's value.
        experiment: One whose hyperparameters a part of training is checked with; None for the defaults.

    Raises:
        BadInputError: There is no such part.
    """
    if field.startswith("model."):
        return model_check.check_part(field, name)
    resolve(field, name)
    train = experiment.train if experiment else TrainSpec(learning_rate=1e-2)
    if field == "train.schedule":
        return run_checks(_schedule_checks(_with_schedule(train, name)))
    return run_checks(_optimizer_checks(train.model_copy(update={"optimizer": name, "schedule": "constant"})))


# --- Optimizers ---


def _optimizer_checks(spec: TrainSpec) -> dict[str, Callable[[], Problem]]:
    return {
        "has every parameter once": partial(_builds, spec),
        "a step changes every parameter": partial(_changes_all, spec),
        "the same gradients give the same bits": partial(_repeats, spec),
        "saved and restored, it goes on with the same bits": partial(_restores, spec),
        "descends on a quadratic": partial(_descends, spec),
        "works in float64": partial(_descends, spec, torch.float64),
    }


def _new(spec: TrainSpec, dtype: torch.dtype = torch.float32) -> tuple[GPT, torch.optim.Optimizer]:
    model = gpt.build(SMALL, seed=0).to(dtype)
    return model, optimizers.build(model, spec, fused=False)


def _train(model: GPT, optimizer: torch.optim.Optimizer, spec: TrainSpec, steps: range) -> None:
    """Take steps with random gradients, each a function of the step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        torch.manual_seed(step)
        set_learning_rate(optimizer, learning_rate(step, spec), spec)
        optimizers.clipped_update(optimizer, optimizers.gradient_norm(model), spec.max_grad_norm)


def _builds(spec: TrainSpec) -> Problem:
    _new(spec)
    return None


def _changes_all(spec: TrainSpec) -> Problem:
    model, optimizer = _new(spec)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _train(model, optimizer, spec, range(2))  # the first step of some changes nothing
    same = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    return f"{same[0]} stays as it was" if same else None


def _repeats(spec: TrainSpec) -> Problem:
    (one, first), (two, second) = _new(spec), _new(spec)
    _train(one, first, spec, range(3))
    _train(two, second, spec, range(3))
    return _difference(one.state_dict(), two.state_dict(), "differs from call to call")


def _restores(spec: TrainSpec) -> Problem:
    model, optimizer = _new(spec)
    _train(model, optimizer, spec, range(3))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.clone() for name, tensor in optimizers.state_tensors(model, optimizer).items()}
    values = optimizers.state_values(model, optimizer)
    restored = gpt.with_weights(SMALL, weights)
    other = optimizers.build(restored, spec, fused=False)
    optimizers.load_state(restored, other, tensors, values)
    for each in ((model, optimizer), (restored, other)):
        _train(*each, spec, range(3, 6))
    return _difference(model.state_dict(), restored.state_dict(), "differs after the state was saved and restored")


def _difference(one: dict[str, Tensor], other: dict[str, Tensor], problem: str) -> Problem:
    differing = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    return f"{differing[0]} {problem}" if differing else None


def _descends(spec: TrainSpec, dtype: torch.dtype = torch.float32) -> Problem:
    """Minimize half the mean squared distance to a target for each parameter."""
    spec = spec.model_copy(update={"weight_decay": 0.0})
    model, optimizer = _new(spec, dtype)
    generator = torch.Generator().manual_seed(0)
    targets = [p.detach() + torch.randn(p.shape, generator=generator).to(dtype) for p in model.parameters()]

    def distance() -> float:
        pairs = zip(model.parameters(), targets, strict=True)
        return math.fsum(float((p.detach() - target).square().mean()) for p, target in pairs)

    before = distance()
    for step in range(DESCENT_STEPS):
        for parameter, target in zip(model.parameters(), targets, strict=True):
            parameter.grad = parameter.detach() - target
        set_learning_rate(optimizer, learning_rate(step, spec), spec)
        optimizers.clipped_update(optimizer, optimizers.gradient_norm(model), math.inf)
    after = distance()
    if any(parameter.dtype != dtype for parameter in model.parameters()):
        return f"parameters are no longer {dtype}"
    return None if after < before else f"after {DESCENT_STEPS} steps the distance is {after:.4g}, before {before:.4g}"


# --- Schedules ---


def _with_schedule(train: TrainSpec, name: str) -> TrainSpec:
    """The spec with this schedule, and with a horizon where it can have one."""
    horizon = train.horizon or (None if name == "constant" else HORIZON)
    return TrainSpec.model_validate({**train.model_dump(), "schedule": name, "horizon": horizon})


def _schedule_checks(spec: TrainSpec) -> dict[str, Callable[[], Problem]]:
    return {
        "every rate is finite and not negative": partial(_rates_are_rates, spec),
        "some rate is positive": lambda: None if any(_rates(spec)) else "every rate is zero",
        "a rate depends on the step and the spec only": partial(_is_pure, spec),
        "the number of steps changes no rate": partial(_ignores_steps, spec),
        "the horizon is reached without an error": partial(_reaches_horizon, spec),
    }


def _steps(spec: TrainSpec) -> range:
    end = spec.horizon or HORIZON
    return range(0, end, max(end // HORIZON, 1))


def _rates(spec: TrainSpec) -> list[float]:
    return [learning_rate(step, spec) for step in _steps(spec)]


def _rates_are_rates(spec: TrainSpec) -> Problem:
    _rates(spec)  # raises an error that says at which step
    return None


def _is_pure(spec: TrainSpec) -> Problem:
    forwards = _rates(spec)
    backwards = [learning_rate(step, spec) for step in reversed(_steps(spec))][::-1]
    differing = [step for step, one, two in zip(_steps(spec), forwards, backwards, strict=True) if one != two]
    return f"step {differing[0]} has another rate at the second call" if differing else None


def _ignores_steps(spec: TrainSpec) -> Problem:
    others = _rates(spec.model_copy(update={"steps": 7 * spec.steps}))
    return None if others == _rates(spec) else "it depends on train.steps, so an extended run would have other rates"


def _reaches_horizon(spec: TrainSpec) -> Problem:
    end = spec.horizon or HORIZON
    learning_rate(end - 1, spec)
    learning_rate(end, spec)
    return None
