"""A captured step computes what the step computes, or says why it cannot be captured.

A recorder stands for CUDA graphs, and the step takes the paths of CUDA. `tests/gpu` has the same with a GPU.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recorded_graphs import RecordedGraphs
from torch import nn

from gptlab.checkpoints.manifest import LoopState
from gptlab.errors import DivergedError, GptlabError
from gptlab.model import gpt
from gptlab.spec import Experiment
from gptlab.tracking.metrics import read_metrics
from gptlab.training import attempt, optimizer, plan
from gptlab.training.capture import CapturedStep, NotCapturableError
from gptlab.training.settings import Available, Settings, resolve_settings
from gptlab.training.state import TrainingState, checkpoint_files
from gptlab.training.step import TrainingStep

SETTINGS = replace(resolve_settings("cpu", "float32", Available.here()), asynchronous=True, capture=True)


@pytest.fixture(autouse=True)
def paths_of_cuda(monkeypatch):
    """On a CPU the step reads numbers where this is cheaper; on CUDA it never does."""
    monkeypatch.setattr(gpt, "compose_with_recompute", lambda outer, inner, x: outer(inner(x)))
    monkeypatch.setattr(gpt, "mean_cross_entropy", lambda x, weight, targets: F.cross_entropy(x @ weight.t(), targets))
    divide = optimizer._divide_gradients

    def divide_on_device(update, scale):
        if optimizer.skips_on_device(update):
            update.grad_scale = scale
        else:
            divide(update, scale)

    monkeypatch.setattr(optimizer, "_divide_gradients", divide_on_device)


def new_state(experiment: Experiment) -> TrainingState:
    model = gpt.build(experiment.model, seed=0)
    update = optimizer.build(model, experiment.train, fused=True, capturable=True)
    return TrainingState(model, update, loop=LoopState())


def new_step(experiment: Experiment, state: TrainingState) -> TrainingStep:
    return TrainingStep(state.model, state.optimizer, experiment, seed=0, settings=SETTINGS)


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 200, (2, 17), generator=torch.Generator().manual_seed(step))


def captured(experiment: Experiment, state: TrainingState) -> CapturedStep:
    return CapturedStep(new_step(experiment, state), batch(0), RecordedGraphs())


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    files = checkpoint_files(state, resumable=True, copy=True)
    return {f"{file}:{name}": tensor for file, content in files.items() for name, tensor in content.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dropout": 0.2},
        {"train.schedule": "cosine", "train.warmup_steps": 2, "train.horizon": 9},
        {"train.grad_clip": 0.0},
        {"model.position": "experiments.parts.positions:Rotary", "model.tied": True},
    ],
)
def test_captured_and_uncaptured_steps_have_the_same_bits(micro, changes):
    experiment = micro.with_changes(changes)
    plain, graph = new_state(experiment), new_state(experiment)
    step, replayed = new_step(experiment, plain), captured(experiment, graph)
    results = [(step(batch(n), n), replayed(batch(n), n)) for n in range(6)]
    assert len({loss.item() for (loss, _), _ in results}) == 6
    for one, other in results:
        assert torch.equal(torch.stack(one), torch.stack(other))
    assert_equal(tensors(plain), tensors(graph))


def test_a_capture_changes_no_weight_and_creates_moments_of_zero(micro):
    untouched, state = new_state(micro), new_state(micro)
    captured(micro, state)
    before, after = tensors(untouched), tensors(state)
    assert_equal(before, {name: after[name] for name in before})
    moments = after.keys() - before.keys()
    assert len(moments) == 3 * len(list(state.model.parameters()))
    assert not any(after[name].any() for name in moments)


def test_a_capture_between_steps_changes_nothing(micro):
    plain, graph = new_state(micro), new_state(micro)
    for state in (plain, graph):
        new_step(micro, state)(batch(0), 0)
    replayed = captured(micro, graph)
    assert_equal(tensors(plain), tensors(graph))
    new_step(micro, plain)(batch(1), 1)
    replayed(batch(1), 1)
    assert_equal(tensors(plain), tensors(graph))


def test_results_are_kept_when_the_step_is_replayed(micro):
    replayed = captured(micro, new_state(micro))
    first, _ = replayed(batch(0), 0)
    value = first.item()
    replayed(batch(1), 1)
    assert first.item() == value


def test_a_non_finite_loss_leaves_weights_and_moments_unchanged(micro):
    state = new_state(micro)
    replayed = captured(micro, state)
    replayed(batch(0), 0)
    bad = batch(1)
    bad[0, 3] = 250  # no other batch has this token
    with torch.no_grad():
        state.model.token_embedding.weight[250] = torch.inf
    before = tensors(state)
    loss, _ = replayed(bad, 1)
    assert not loss.isfinite()
    assert_equal(before, tensors(state))
    loss, _ = replayed(batch(2), 2)
    assert loss.isfinite()
    assert not torch.equal(before["model.safetensors:final_norm.weight"], state.model.final_norm.weight)


def test_before_update_is_called_before_the_weights_change(micro):
    state = new_state(micro)
    replayed, before, seen = captured(micro, state), tensors(state), []
    replayed(batch(0), 0, before_update=lambda: seen.append(tensors(state)))
    assert_equal(before, *seen)


class Counting(nn.Module):
    """A norm that counts its calls in a buffer, in place or not."""

    in_place = True

    def __init__(self, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(spec.n_embd))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return x * self.weight


class Waiting(Counting):
    """The same, which also looks at a value."""

    def forward(self, x):
        x = super().forward(x)
        return x if x.abs().max() > 0 else -x


@pytest.fixture
def with_norm(micro, monkeypatch):
    """Experiments with one of these norms."""

    def change(norm):
        monkeypatch.setattr(f"experiments.parts.rms_norm.{norm.__name__}", norm, raising=False)
        return micro.with_changes({"model.norm": f"experiments.parts.rms_norm:{norm.__name__}"})

    return change


def test_a_buffer_that_changes_in_place_is_as_without_a_capture(with_norm):
    experiment = with_norm(Counting)
    plain, graph = new_state(experiment), new_state(experiment)
    step, replayed = new_step(experiment, plain), captured(experiment, graph)
    for n in range(3):
        step(batch(n), n)
        replayed(batch(n), n)
    assert graph.model.final_norm.calls == 3
    assert_equal(tensors(plain), tensors(graph))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (type("Replacing", (Counting,), {"in_place": False}), "a part of the model replaces its buffer calls"),
        (Waiting, "it waits for the device: RuntimeError: called a synchronizing"),
    ],
)
def test_a_part_that_cannot_be_captured_is_named_and_the_step_runs_uncaptured(with_norm, norm, reason):
    experiment = with_norm(norm)
    plain, state = new_state(experiment), new_state(experiment)
    with pytest.raises(NotCapturableError, match=reason):
        captured(experiment, state)
    for n in range(2):
        new_step(experiment, plain)(batch(n), n)
        new_step(experiment, state)(batch(n), n)
    assert_equal(tensors(plain), tensors(state))


def test_a_capture_that_fails_is_one_line_with_a_remedy(micro):
    class Failing(RecordedGraphs):
        def capture(self, function):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    step = new_step(micro, new_state(micro))
    with pytest.raises(GptlabError, match="^the step cannot be captured .*: .*operation .*; try --no-capture$"):
        CapturedStep(step, batch(0), Failing())


def test_an_error_of_a_part_is_not_taken_for_waiting(with_norm):
    class Failing(Waiting):
        def forward(self, x):
            raise RuntimeError("a bug")

    experiment = with_norm(Failing)
    with pytest.raises(RuntimeError, match="a bug"):
        captured(experiment, new_state(experiment))


def test_an_optimizer_that_cannot_skip_updates_is_not_captured_and_the_host_checks_each_step(micro):
    experiment = micro.with_changes({"train.optimizer": "experiments.parts.sgd:sgd"})
    state = new_state(experiment)
    with pytest.raises(NotCapturableError, match="SGD updates even if the loss is not finite"):
        captured(experiment, state)
    with torch.no_grad():
        state.model.final_norm.weight[0] = torch.nan
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    loss, _ = new_step(experiment, state)(batch(0), 0)
    assert loss.isnan()
    after = dict(state.model.named_parameters())
    assert all(torch.equal(value, after[name]) or "final_norm" in name for name, value in before.items())


@pytest.fixture
def with_capture(monkeypatch):
    """Runs are captured, by the recorder."""
    real = plan.resolve_settings
    changes = {"asynchronous": True, "capture": True}
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), **changes))
    monkeypatch.setattr(Settings, "capturable", True)  # as on CUDA, where it does not depend on `capture`
    monkeypatch.setattr(attempt, "CudaGraphs", RecordedGraphs)


def losses(run):
    return [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in read_metrics(run.directory)]


def test_a_captured_run_has_the_bits_of_an_uncaptured_one_also_when_it_is_extended(
    train, micro, with_capture, monkeypatch, tmp_path
):
    experiment = micro.with_changes({"model.dropout": 0.1})
    train(experiment, steps=13)
    extended = train(experiment, steps=20).run
    (start, _, again, _) = extended.history().attempts
    assert start["capture"] is again["capture"] is True
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "uncaptured"))
    plain = train(experiment, steps=20, capture=False).run
    assert plain.history().starts[0]["capture"] is False
    assert losses(extended) == losses(plain)
    paths = [run.directory / "checkpoints" / "step-00000020" / "model.safetensors" for run in (extended, plain)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_captured_run_that_diverges_ends_without_saving_the_update(train, micro, with_capture, monkeypatch):
    real = CapturedStep.__call__

    def break_a_weight(self, batch, step, before_update=lambda: None):
        if step == 12:
            self._step.model.final_norm.weight.data.fill_(torch.inf)
        return real(self, batch, step, before_update)

    monkeypatch.setattr(CapturedStep, "__call__", break_a_weight)
    with pytest.raises(DivergedError, match="after step 12"):
        train(micro)


def test_a_run_whose_step_cannot_be_captured_says_why_and_records_it(train, micro, with_capture, capsys):
    run = train(micro.with_changes({"train.optimizer": "experiments.parts.sgd:sgd"}), steps=3).run
    _, end = run.history().attempts
    assert end["status"] == "complete"
    assert end["not_captured"] == "SGD updates even if the loss is not finite"
    assert "the step is not captured as a CUDA graph: SGD updates" in (run.directory / "log.txt").read_text()
