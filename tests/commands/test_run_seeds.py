"""`gptlab run --seeds`: several seeds in one process, with one summary."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.special import stdtrit

from analysis.stats import estimate
from gptlab import cli
from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.commands import run_seeds as command
from gptlab.commands.run import Options
from gptlab.commands.run_seeds import render, run_seeds
from gptlab.commands.seeds import parse_seeds, summarize
from gptlab.errors import BadInputError, DivergedError, GptlabError
from gptlab.spec import Experiment
from gptlab.student_t import t_quantile
from gptlab.terminal.console import Console
from gptlab.tracking.run import all_runs

OFF = Options(wandb="off")


@pytest.fixture
def short(micro: Experiment) -> Experiment:
    return micro.with_changes({"train.steps": 2})


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0,1,2") == [0, 1, 2]
    assert parse_seeds("7, 0-3,10") == [7, 0, 1, 2, 3, 10]
    assert parse_seeds("5") == [5]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "--seeds expects numbers such as 0,1,2 or 0-4, not ''"),
        ("0,,1", "expects numbers"),
        ("-1", "expects numbers"),
        ("0..4", "expects numbers"),
        ("1,0-4", "names seed 1 twice"),
        ("4-0", "a range goes up"),
        ("0-9999", "at most 1000 seeds"),
        ("0-999,1000", "at most 1000 seeds"),
    ],
)
def test_other_seeds_are_an_error(text, answer):
    with pytest.raises(BadInputError) as raised:
        parse_seeds(text)
    assert answer in str(raised.value)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 99, 998])
def test_the_quantile_is_scipys(df):
    assert t_quantile(df) == pytest.approx(stdtrit(df, 0.975), rel=1e-9)
    assert t_quantile(df, 1 - 0.0005) == pytest.approx(stdtrit(df, 1 - 0.0005 / 2), rel=1e-8)


@pytest.mark.parametrize("losses", [[5.0, 5.5], [5.9, 5.7, 6.2], [1.0] * 4, [3.0 + i / 7 for i in range(20)]])
def test_mean_and_interval_are_those_of_the_report(losses):
    ours, theirs = summarize(losses), estimate(losses)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high), rel=1e-9)


def test_without_an_interval_the_summary_says_why():
    assert summarize([]).mean is None
    assert (summarize([5.0]).mean, summarize([5.0]).low) == (5.0, None)
    assert "at least two seeds" in (summarize([5.0]).note or "")
    assert summarize([5.0, math.inf]).mean is None
    assert "diverged" in (summarize([5.0, math.inf]).note or "")


def test_each_seed_is_the_run_that_it_is_alone_and_the_summary_comes_once(short, train, capfd):
    outcome = run_seeds(short, [0, 1], OFF)
    render(outcome, short, Console())
    out = capfd.readouterr().out
    assert outcome.exit_code == 0
    assert [result.run.id for result in outcome.results] == [train(short, seed=seed).run.id for seed in (0, 1)]
    assert [run.history().step for run in all_runs()] == [2, 2]
    assert out.count("\nnext\n") == 1
    summary = out[out.rindex("micro: 2 seeds") :]
    losses = [result.document()["val_loss"] for result in outcome.results]
    for seed, loss in enumerate(losses):
        assert f"seed {seed}      val loss {loss:.4f} · complete at step 2" in summary
    expected = estimate(losses)
    assert f"mean        {expected.mean:.4f} nats/token" in summary
    assert f"95% interval {expected.low:.4f} to {expected.high:.4f}" in summary
    for result in outcome.results:
        assert "95% interval" not in (result.run.directory / "log.txt").read_text(), "each log is about its own run"


def test_the_same_command_changes_nothing_and_more_steps_extend_all(short):
    run_seeds(short, [0, 1], OFF)
    before = [len(run.history().attempts) for run in all_runs()]
    again = run_seeds(short, [0, 1], OFF)
    assert [len(run.history().attempts) for run in all_runs()] == before
    assert again.summary().n == 2
    run_seeds(short, [0], OFF)
    extended = run_seeds(short.with_changes({"train.steps": 3}), [1, 0], OFF)
    assert [result.run.history().step for result in extended.results] == [3, 3]


def failing(monkeypatch: pytest.MonkeyPatch, **errors: BaseException) -> None:
    """Let seeds fail: `failing(monkeypatch, seed1=…)`."""
    train = command.run_experiment

    def run_experiment(experiment, seed, *arguments):
        if error := errors.get(f"seed{seed}"):
            raise error
        return train(experiment, seed, *arguments)

    monkeypatch.setattr(command, "run_experiment", run_experiment)


def test_a_seed_that_fails_or_diverges_does_not_stop_the_others_and_the_exit_code_is_the_worst(
    short, monkeypatch, capfd
):
    failing(monkeypatch, seed0=GptlabError("the disk is full"), seed1=DivergedError("the loss is nan"))
    outcome = run_seeds(short, [0, 1, 2, 3], OFF)
    err = capfd.readouterr().err
    assert "error: the disk is full\n" in err
    assert "error: the loss is nan\n" in err
    assert [result.exit_code for result in outcome.results] == [1, 3, 0, 0]
    assert outcome.exit_code == 3
    document = outcome.document()
    assert [run.get("error") for run in document["runs"]] == ["the disk is full", "the loss is nan", None, None]
    assert [run["seed"] for run in document["runs"]] == [0, 1, 2, 3]
    assert (document["summary"]["n"], document["summary"]["note"]) == (2, "without 2 that did not complete")


def test_a_diverged_seed_counts_as_infinite(micro, capfd):
    hot = micro.with_changes({"train.learning_rate": 1e30, "train.grad_clip": 0, "train.steps": 9})
    outcome = run_seeds(hot, [0, 1], OFF)
    assert outcome.exit_code == 3
    assert [result.document()["status"] for result in outcome.results] == ["diverged", "diverged"]
    assert outcome.summary().mean is None
    render(outcome, hot, Console())
    assert "a seed diverged" in capfd.readouterr().out


def test_a_bug_is_no_failure_of_a_seed(short, monkeypatch):
    failing(monkeypatch, seed1=AssertionError("a bug"))
    with pytest.raises(AssertionError):
        run_seeds(short, [0, 1, 2], OFF)


def test_ctrl_c_while_a_seed_starts_ends_the_command_with_the_summary(short, monkeypatch, capfd):
    failing(monkeypatch, seed1=KeyboardInterrupt())
    outcome = run_seeds(short, [0, 1, 2], OFF)
    assert (len(outcome.results), outcome.not_started, outcome.exit_code) == (1, [1, 2], 130)
    render(outcome, short, Console())
    assert "seed 1      not started" in capfd.readouterr().out


def test_bad_input_is_one_error_and_not_one_per_seed(short):
    with pytest.raises(BadInputError, match="there is no file"):
        run_seeds(short.with_changes({"data.text": "missing.txt"}), [0, 1, 2], OFF)


def test_seeds_at_different_steps_have_no_mean(short, train):
    train(short, seed=0, steps=4)
    outcome = run_seeds(short, [0, 1], OFF)
    assert outcome.summary().mean is None
    assert outcome.summary().note == "the seeds ended at different steps: 2, 4"


@pytest.mark.slow
def test_ctrl_c_saves_the_seed_in_training_and_starts_no_other(micro, project):
    """A real process, and a real SIGINT in the first of two seeds; a third one is complete."""
    run_seeds(micro, [0], OFF)
    settings = ["--wandb", "off", "--json", "--steps", "100000", "--set", "train.log_every=1"]
    arguments = [sys.executable, "-m", "gptlab", "run", "micro", "--seeds", "1-2", *settings]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project, env=environment
    )
    for line in process.stderr:
        if "step      5 ·" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate()
    assert process.returncode == 130, err
    document = json.loads(out)
    assert [(run["seed"], run["status"]) for run in document["runs"]] == [(1, "interrupted")]
    assert document["not_started"] == [2]
    assert document["summary"]["note"] == "without 2 that did not complete"
    summary = err[err.index("micro: 2 seeds") :]
    assert "seed 2      not started" in summary
    assert "resume      " in summary
    done, stopped = sorted(all_runs(), key=lambda run: run.record.seed)
    assert (done.history().status, stopped.history().status) == ("complete", "interrupted")
    assert list_checkpoints(stopped.directory)[-1].step == stopped.history().step
