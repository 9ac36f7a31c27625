"""The learning rate is a pure function of (step, spec)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory
from gptlab.spec import TrainSpec
from gptlab.tracking.metrics import read_metrics
from gptlab.training.schedule import learning_rate, set_learning_rate


@st.composite
def specs(draw: st.DrawFn) -> TrainSpec:
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd"]))
    warmup = draw(st.integers(0, 50))
    fields = {"schedule": schedule, "warmup_steps": warmup, "learning_rate": draw(st.floats(1e-6, 1.0))}
    if schedule != "constant" and (schedule != "wsd" or draw(st.booleans())):
        decay = draw(st.integers(1, 50))
        fields["horizon"] = warmup + decay + draw(st.integers(0, 50))
        if schedule == "wsd":
            fields["decay_steps"] = decay
    return TrainSpec(**fields)


@given(specs(), st.integers(0, 200))
def test_a_rate_is_between_zero_and_the_specs_and_moves_by_less_than_its_slope_allows(spec: TrainSpec, step: int):
    rate, following = learning_rate(step, spec), learning_rate(step + 1, spec)
    assert 0 <= rate <= spec.learning_rate
    assert rate == learning_rate(step, spec.model_copy(update={"steps": 7}))
    if step < spec.warmup_steps:
        assert rate == pytest.approx(spec.learning_rate * (step + 1) / spec.warmup_steps)
    end = spec.horizon or math.inf
    assert (rate > 0) == (step < end)
    decay = spec.decay_length if spec.schedule == "wsd" else end - spec.warmup_steps
    slope = max(1 / max(spec.warmup_steps, 1), math.pi / 2 / decay)
    assert abs(rate - following) <= spec.learning_rate * slope * 1.001


def test_the_schedules_have_the_values_of_their_formulas():
    def rates(**fields: object) -> list[float]:
        return [round(learning_rate(step, TrainSpec(learning_rate=1, **fields)), 6) for step in range(9)]

    assert rates(warmup_steps=2) == [0.5] + [1] * 8
    assert rates(schedule="linear", horizon=8) == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    cosine = [round(0.5 * (1 + math.cos(math.pi * step / 4)), 6) for step in range(5)]
    assert rates(schedule="cosine", warmup_steps=4, horizon=8) == [0.25, 0.5, 0.75, 1, *cosine]
    assert rates(schedule="wsd", horizon=8, decay_steps=4, warmup_steps=2) == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert rates(schedule="wsd") == [1] * 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "linear"}, "needs a horizon"),
        ({"schedule": "cosine", "horizon": 10, "decay_steps": 2}, "ignores decay_steps 2"),
        ({"schedule": "cosine", "horizon": 10, "warmup_steps": 10}, "exceed horizon 10"),
        ({"schedule": "wsd", "horizon": 10, "warmup_steps": 5, "decay_steps": 6}, "exceed horizon 10"),
        ({"schedule": "wsd", "decay_steps": 6}, "needs a horizon"),
        ({"horizon": 10}, "set train.horizon=none"),
    ],
)
def test_fields_that_would_do_nothing_or_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainSpec(**fields)


def test_groups_with_a_rate_of_their_own_keep_its_ratio():
    one, two = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.1}], lr=1.0)
    spec = TrainSpec(learning_rate=1.0, schedule="linear", horizon=4)
    for step in (2, 0, 2):
        set_learning_rate(optimizer, learning_rate(step, spec), spec)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


@pytest.mark.parametrize("first", [2, 6, 13])
def test_a_run_extended_in_warmup_stable_part_and_decay_ends_with_the_same_bytes(
    train, micro, tmp_path, monkeypatch, first
):
    changes = {"train.schedule": "wsd", "train.warmup_steps": 4, "train.horizon": 16, "train.decay_steps": 6}
    spec = micro.with_changes({**changes, "train.steps": 16, "train.eval_every": 16, "model.n_layer": 1})
    whole = train(spec).run
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "interrupted"))
    train(spec, steps=first)
    extended = train(spec).run
    for file in (MODEL, OPTIMIZER):
        ends = [checkpoint_directory(run.directory, 16) / file for run in (whole, extended)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    rates = {row["step"]: row.get("optim/lr") for row in read_metrics(whole.directory)}
    assert rates == {step: learning_rate(step - 1, spec.train) if step else None for step in (0, 5, 10, 15, 16)}


def test_a_run_ends_at_its_horizon_and_says_so(train, micro, capsys):
    spec = micro.with_changes({"train.schedule": "linear", "train.horizon": 3, "model.n_layer": 1})
    run = train(spec, steps=9).run
    assert run.history().step == run.history().target == 3
    assert run.history().status == "complete"
    assert "train.schedule linear ends at train.horizon 3, before step 9" in capsys.readouterr().err
    train(spec, steps=9)
    assert "is complete: 3 steps" in (printed := capsys.readouterr().err)
    assert "extend" in printed
    assert "larger train.horizon" in " ".join(printed.split())
