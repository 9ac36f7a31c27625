"""One optimizer step is a function of (model, optimizer, batch, step), and the loop calls hooks around it."""

import time
from dataclasses import replace

import pytest
import torch

from gptlab.checkpoints.manifest import LoopState
from gptlab.data import text
from gptlab.data.vocabularies import tokenizer_of
from gptlab.model import gpt
from gptlab.tracking.metrics import read_metrics
from gptlab.training import optimizer, plan
from gptlab.training.loop import Hooks
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.state import TrainingState, checkpoint_files
from gptlab.training.step import TrainingStep
from gptlab.training.stopwatch import Stopwatch
from gptlab.training.training_data import load_training_data

SETTINGS = resolve_settings("cpu", "float32", Available.here())


def new_state(experiment):
    model = gpt.build(experiment.model, seed=0)
    return TrainingState(model, optimizer.build(model, experiment.train, fused=True), loop=LoopState())


def new_step(experiment, state, settings=SETTINGS):
    return TrainingStep(state.model, state.optimizer, experiment, seed=0, settings=settings)


@pytest.fixture
def batch(micro):
    data = load_training_data(micro, text.locate(micro.data.text), 0, tokenizer_of(micro))
    return lambda step: torch.from_numpy(data.windows.batch(step))


def test_steps_outside_of_a_run_give_the_losses_of_the_run(micro, long_run, batch):
    state = new_state(micro)
    step = new_step(micro, state)
    losses = [float(step(batch(number), number)[0]) for number in range(5)]
    row = next(row for row in read_metrics(long_run.directory) if row["step"] == 5)
    assert row["train/loss"] == sum(losses) / 5


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_state_batch_and_step_give_the_same_bits(micro, batch, dropout):
    experiment = micro.with_changes({"model.dropout": dropout})
    results, tensors = [], []
    for _ in range(2):
        torch.manual_seed(len(results))  # nothing depends on the global generator
        state = new_state(experiment)
        step = new_step(experiment, state)
        results.append([value.item() for number in range(3) for value in step(batch(number), number)])
        tensors.append(checkpoint_files(state, resumable=True, copy=True))
    assert results[0] == results[1]
    for name, file in tensors[0].items():
        assert all(torch.equal(tensor, tensors[1][name][key]) for key, tensor in file.items())


def test_the_norm_is_that_before_clipping(micro, batch):
    clipped = micro.with_changes({"train.grad_clip": 1e-3})
    free = micro.with_changes({"train.grad_clip": 0.0})
    norms = [new_step(e, new_state(e))(batch(0), 0)[1].item() for e in (clipped, free)]
    assert norms[0] == norms[1] > 1e-3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_non_finite_loss_leaves_weights_and_moments_unchanged(micro, batch, asynchronous):
    state = new_state(micro)
    step = new_step(micro, state, replace(SETTINGS, asynchronous=asynchronous))
    step(batch(0), 0)
    before = checkpoint_files(state, resumable=True, copy=True)
    handle = state.model.final_norm.register_forward_hook(lambda module, inputs, output: output * torch.inf)
    loss, _ = step(batch(1), 1)
    handle.remove()
    assert not loss.isfinite()
    after = checkpoint_files(state, resumable=True, copy=True)
    for name, file in before.items():
        assert all(torch.equal(tensor, after[name][key]) for key, tensor in file.items())


def test_before_update_is_called_after_the_backward_pass_and_before_the_weights_change(micro, batch):
    state = new_state(micro)
    weight = state.model.token_embedding.weight
    before, seen = weight.detach().clone(), []

    def look():
        seen.append((torch.equal(weight, before), weight.grad is not None))

    new_step(micro, state)(batch(0), 0, before_update=look)
    assert seen == [(True, True)]
    assert not torch.equal(weight, before)


def test_the_loop_calls_its_hooks(train, micro):
    calls = []
    hooks = Hooks(
        on_start=[lambda: calls.append("start")],
        on_step=[lambda step, loss: calls.append(("step", step, loss > 0))],
        on_row=[lambda row: calls.append(("row", row["step"]))],
        on_checkpoint=[lambda checkpoint: calls.append(("checkpoint", checkpoint.step, checkpoint.directory.exists()))],
    )
    train(micro, steps=10, hooks=hooks)
    assert calls[:2] == ["start", ("row", 0)]
    assert [call for call in calls if call[0] == "step"] == [("step", step, True) for step in range(1, 11)]
    assert [call for call in calls if call[0] == "row"] == [("row", 0), ("row", 5), ("row", 10)]
    assert [call for call in calls if call[0] == "checkpoint"] == [("checkpoint", 10, True)]


def test_an_error_in_a_hook_ends_the_attempt_and_the_run_resumes(train, micro, long_run):
    def fail(checkpoint):
        raise RuntimeError("in a hook")

    with pytest.raises(RuntimeError, match="in a hook"):
        train(micro, hooks=Hooks(on_checkpoint=[fail]))
    run = train(micro).run
    assert [row["train/loss"] for row in read_metrics(run.directory)[1:]] == [
        row["train/loss"] for row in read_metrics(long_run.directory)[1:]
    ]


@pytest.fixture
def asynchronous(monkeypatch):
    """Runs go on as on a GPU: the host does not wait for the results of a step."""
    real = plan.resolve_settings
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), asynchronous=True))


@pytest.mark.usefixtures("asynchronous")
def test_a_gpu_works_on_the_next_step_while_a_row_is_written(train, micro, monkeypatch):
    calls = []
    real = TrainingStep.__call__

    def step(self, batch, number, before_update=lambda: None):
        calls.append(f"step {number}")
        return real(self, batch, number, before_update)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    train(micro, steps=20, hooks=Hooks(on_row=[lambda row: calls.append(f"row {row['step']}")]))
    assert calls.index("row 5") == calls.index("step 5") + 1  # the first five steps are 0 to 4
    assert calls.index("row 10") == calls.index("step 10") - 1  # a validation and a checkpoint wait


@pytest.mark.usefixtures("asynchronous")
@pytest.mark.parametrize("stop", [5, 6, 15])
def test_a_row_that_is_written_late_is_not_lost_when_training_stops(train, micro, long_run, signal_at_step, stop):
    train(micro, hooks=signal_at_step(stop))
    run = train(micro).run
    columns = ("step", "train/loss", "optim/grad_norm", "val/loss")
    ours, theirs = ([[row.get(name) for name in columns] for row in read_metrics(r.directory)] for r in (run, long_run))
    assert ours == theirs


def test_steps_that_have_only_started_belong_to_the_next_interval(monkeypatch):
    stopwatch = Stopwatch()
    ended = time.perf_counter() + 6
    monkeypatch.setattr("gptlab.training.stopwatch.time.perf_counter", lambda: ended)
    stopwatch.step_s = [1.0, 2.0, 3.0]
    all_steps, ended = (stopwatch.performance(10, steps_ahead=ahead, asynchronous=False) for ahead in (0, 1))
    assert (all_steps["perf/step_ms"], ended["perf/step_ms"]) == (2000, 1500)
    assert ended["perf/tokens_per_s"] == pytest.approx(all_steps["perf/tokens_per_s"] * 2 / 3)
    assert stopwatch.next(steps_ahead=1).step_s == [3.0]
    assert stopwatch.next(steps_ahead=0).step_s == []


@pytest.mark.usefixtures("asynchronous")
def test_each_row_counts_the_steps_of_its_interval(train, micro, monkeypatch):
    counts = []
    real = Stopwatch.performance

    def performance(self, batch_tokens, *, steps_ahead=0, asynchronous):
        counts.append(len(self.step_s) - steps_ahead)
        return real(self, batch_tokens, steps_ahead=steps_ahead, asynchronous=asynchronous)

    monkeypatch.setattr(Stopwatch, "performance", performance)
    train(micro, steps=23)
    assert counts == [0, 5, 5, 5, 5, 3]
