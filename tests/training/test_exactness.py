"""Training is a pure function of (spec, seed, step): interrupted or not, a run ends with the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory, list_checkpoints
from gptlab.spec import Experiment
from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.run import Run, all_runs


def final_state(run: Run, step: int) -> tuple[bytes, bytes]:
    directory = checkpoint_directory(run.directory, step)
    return (directory / MODEL).read_bytes(), (directory / OPTIMIZER).read_bytes()


def deterministic_rows(run: Run) -> list[dict[str, object]]:
    return [{key: row[key] for key in DETERMINISTIC if key in row} for row in read_metrics(run.directory)]


def assert_same(run: Run, long_run: Run) -> None:
    assert run.id == long_run.id
    assert final_state(run, 40) == final_state(long_run, 40)
    assert deterministic_rows(run) == deterministic_rows(long_run)


def test_the_same_run_twice_ends_with_the_same_bytes(train, micro, long_run):
    assert_same(train(micro).run, long_run)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 20, 25, 39])
def test_an_extended_run_equals_one_that_was_started_with_all_steps(train, micro, long_run, first):
    train(micro, steps=first)
    assert_same(train(micro, steps=40).run, long_run)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 10, 13, 39])
def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(train, micro, long_run, signal_at_step, step):
    interrupted = train(micro, hooks=signal_at_step(step))
    assert interrupted.exit_code == 130
    assert interrupted.run.history().status == "interrupted"
    assert interrupted.run.history().step == step
    assert_same(train(micro).run, long_run)


def test_a_run_extended_twice_and_interrupted_in_between_ends_with_the_same_bytes(
    train, micro, long_run, signal_at_step
):
    train(micro, steps=7)
    assert train(micro, steps=33, hooks=signal_at_step(18, signal.SIGTERM)).exit_code == 143
    train(micro, steps=33)
    assert_same(train(micro, steps=40).run, long_run)


@pytest.mark.slow
def test_dropout_is_a_function_of_the_step(train, micro, monkeypatch, tmp_path, signal_at_step):
    dropping = micro.with_changes({"model.dropout": 0.2})
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("GPTLAB_RUNS", str(tmp_path / "undisturbed"))
        undisturbed = train(dropping).run
    train(dropping, hooks=signal_at_step(23))
    assert_same(train(dropping).run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_is_exact_at_every_step(train, micro, monkeypatch, tmp_path, signal_at_step, dropout):
    short = micro.with_changes(
        {"model.dropout": dropout, "model.n_layer": 1, "train.steps": 12, "train.log_every": 4, "train.eval_every": 6}
    )
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("GPTLAB_RUNS", str(tmp_path / "undisturbed"))
        undisturbed = train(short).run
    for step in range(1, 12):  # each attempt makes one step
        assert train(short, hooks=signal_at_step(step)).run.history().step == step
    run = train(short).run
    assert len(run.history().starts) == 12
    assert final_state(run, 12) == final_state(undisturbed, 12)
    assert deterministic_rows(run) == deterministic_rows(undisturbed)


def test_another_seed_ends_with_other_weights(train, micro, long_run):
    other = train(micro, seed=1).run
    assert other.id.endswith("-s1")
    assert final_state(other, 40) != final_state(long_run, 40)


def test_golden_losses(train, gpt2_micro):
    """Another result of the same spec is a change of the arithmetic, and must be meant; see CONTRIBUTING.md."""
    rows = {row["step"]: row for row in read_metrics(train(gpt2_micro).run.directory)}
    assert rows[0]["val/loss"] == pytest.approx(10.8342, abs=2e-3)
    assert rows[40]["train/loss"] == pytest.approx(3.9541, abs=2e-3)
    assert rows[40]["val/loss"] == pytest.approx(3.5210, abs=2e-3)


FINISH = """
import sys
from gptlab.commands.run import Options, run_experiment
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
run_experiment(Experiment.model_validate_json(sys.argv[1]), 0, Options(wandb="off"), Console())
"""


@pytest.mark.slow
def test_after_sigkill_a_new_process_finishes_the_run_with_the_same_bytes(train, micro, long_run, signal_at_step):
    """One process is killed, possibly during a save; another one, which shares nothing with it, finishes the run."""
    child = os.fork()
    if child == 0:
        train(micro, hooks=signal_at_step(21, signal.SIGKILL))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (run,) = all_runs()
    assert run.history().status == "interrupted"
    assert max(c.step for c in list_checkpoints(run.directory)) in {10, 20}  # the newest may have been in flight
    subprocess.run([sys.executable, "-c", FINISH, micro.model_dump_json()], check=True, capture_output=True)
    assert run.history().status == "complete"
    assert_same(run, long_run)


def test_rows_are_on_the_grid_and_at_the_last_step(train, micro):
    run = train(micro.with_changes({"train.log_every": 4, "train.eval_every": 6}), steps=15).run
    rows = read_metrics(run.directory)
    assert [row["step"] for row in rows] == [0, 4, 6, 8, 12, 15]
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 6, 12, 15]
    assert "train/loss" not in rows[0]
    assert all("train/loss" in row for row in rows[1:])


def test_only_evaluations_on_the_grid_count_for_the_best_validation_loss(train, micro):
    run = train(micro, steps=15).run
    rows = {row["step"]: row for row in read_metrics(run.directory)}
    newest = list_checkpoints(run.directory)[-1].manifest.progress
    assert (newest.best_step, newest.best_val_loss) == (10, rows[10]["val/loss"])
    assert rows[15]["val/loss"] < rows[10]["val/loss"]


def test_training_learns(long_run: Run, micro: Experiment):
    rows = read_metrics(long_run.directory)
    assert rows[-1]["train/loss"] < rows[1]["train/loss"] - 2
    assert rows[-1]["tokens"] == 40 * 2 * 16
    assert Path(long_run.record.text.path).read_text() == Path(micro.data.text).read_text()
