"""Runs on a GPU through the command: bits, resume, errors, and checkpoints on either device."""

import pytest
import torch

from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.commands.evaluate import evaluate_run
from gptlab.commands.sample import sample
from gptlab.data import text
from gptlab.errors import DivergedError, GptlabError
from gptlab.terminal.console import Console
from gptlab.tracking.metrics import read_metrics
from gptlab.training.capture import CapturedStep
from gptlab.training.evaluate import evaluate
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.training_data import load_training_data


@pytest.fixture
def in_(monkeypatch, tmp_path):
    """`in_(name)` uses another directory of runs."""
    return lambda name: monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / name))


def files(run, step):
    folder = run.directory / "checkpoints" / f"step-{step:08}"
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_deterministic_run_resumes_and_extends_bit_for_bit(train, small, in_, dropout, compiled):
    experiment = small.with_changes({"model.dropout": dropout})
    options = {"device": "cuda", "deterministic": True, "compile": compiled}
    whole = train(experiment, steps=20, **options).run
    for stop in (1, 7, 12):
        in_(f"parts-{stop}")
        train(experiment, steps=stop, **options)
        parts = train(experiment, steps=20, **options).run
        assert files(parts, 20) == files(whole, 20)
        assert [row["train/loss"] for row in read_metrics(parts.directory)[1:]] == [
            row["train/loss"] for row in read_metrics(whole.directory)[1:]
        ]


def test_a_run_is_compiled_and_captured_by_default(train, small):
    run = train(small, device="cuda").run
    start, end = run.history().attempts
    assert (start["compile"], start["capture"]) == (True, True)
    assert "not_captured" not in end
    assert run.history().last("train/loss") < read_metrics(run.directory)[1]["train/loss"]


def test_an_optimizer_of_the_users_own_runs_uncaptured(train, small):
    run = train(small.with_changes({"train.optimizer": "experiments.parts.muon:muon"}), device="cuda").run
    assert "Muon" in run.history().attempts[-1]["not_captured"]
    assert run.history().status == "complete"


def test_a_diverging_run_ends_before_the_update_lands(train, small, monkeypatch):
    real = CapturedStep.__call__

    def break_a_weight(self, batch, step, before_update=lambda: None):
        if step == 12:
            self._step.model.final_norm.weight.data.fill_(torch.inf)
        return real(self, batch, step, before_update)

    monkeypatch.setattr(CapturedStep, "__call__", break_a_weight)
    with pytest.raises(DivergedError, match="after step 12"):
        train(small, device="cuda")


@pytest.fixture
def little_memory():
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("capture", [False, True])
def test_too_large_a_batch_is_one_line(train, small, capture):
    with pytest.raises(GptlabError, match="out of memory with batch_size 4096"):
        train(small.with_changes({"train.batch_size": 4096}), device="cuda", capture=capture)  # 6.6 GB of logits


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_of_one_device_is_trained_evaluated_and_sampled_on_the_other(train, small, first, second):
    experiment = small.with_changes({"train.precision": "float32"})
    train(experiment, steps=5, device=first)
    run = train(experiment, steps=10, device=second).run
    assert run.history().status == "complete"
    evaluations = [
        evaluate_run(run, step=10, text=None, device=device, console=Console(stderr=True)) for device in (first, second)
    ]
    one, other = (found.evaluation.loss for found in evaluations)
    assert one == pytest.approx(other, rel=1e-3)
    assert sample(run, None, "the", 1, max_tokens=3, temperature=1.0, top_k=0, seed=0).texts


@pytest.mark.parametrize("compiled", [False, True])
def test_validation_in_training_has_the_bits_of_an_evaluation_later(train, small, compiled):
    run = train(small, device="cuda", compile=compiled).run
    (row,) = (row for row in read_metrics(run.directory) if row["step"] == 20)
    data = load_training_data(small, text.locate(small.data.text), seed=0)
    model = load_model(select_checkpoint(run.directory, 20), small.model).to("cuda")
    settings = resolve_settings("cuda", run.record.precision, Available.here())
    found = evaluate(model, data.val, data.val_starts, sequence_length=16, settings=settings)
    assert found.loss == row["val/loss"]
