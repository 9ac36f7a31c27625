"""Several processes train one run and compute what one process computes, but for the order of sums."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import eventually
from together import run_together

from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.run import Run, load_run

STEPS = 10
SETTINGS = ("train.log_every=1", "train.eval_every=5", "train.checkpoint_every=5", "train.keep_steps=[1]")
OPTIONS = ("--wandb", "off", "--deterministic", *(word for each in SETTINGS for word in ("--set", each)))


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`own_runs(name)` makes commands write to another runs directory."""

    def use(name: str) -> Path:
        monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / name))
        return tmp_path / name

    return use


@pytest.fixture
def trained(project: Path, tmp_path: Path, own_runs):
    """`trained(name, processes, steps)` trains a run to a number of steps, in the runs directory of that name."""

    def train(name: str, *processes_and_steps: tuple[int, int], options: tuple[str, ...] = ()) -> Run:
        runs = own_runs(name)
        for processes, steps in processes_and_steps:
            shard = options if processes > 1 else ()
            ended = run_together(tmp_path, "run", "micro", *OPTIONS, "--steps", str(steps), *shard, processes=processes)
            assert [each.code for each in ended] == [0] * processes, ended
            assert [(each.out, each.err) for each in ended[1:]] == [("", "")] * (processes - 1)
        (directory,) = runs.glob("micro-*")
        return load_run(directory)

    return train


def tensors(run: Run, step: int, file: str) -> dict[str, np.ndarray]:
    return load_file(run.directory / f"checkpoints/step-{step:08}/{file}.safetensors")


def assert_same_training(one: Run, other: Run) -> None:
    """Check that two runs computed the same, but for rounding."""
    assert one.id == other.id
    rows = list(zip(read_metrics(one.directory), read_metrics(other.directory), strict=True))
    assert len(rows) == STEPS + 1
    for row, its in rows:
        for column in set(DETERMINISTIC) & row.keys():
            if isinstance(row[column], float):
                tolerance = {"rel_tol": 1e-4} if column.startswith("optim/") else {"rel_tol": 0.0, "abs_tol": 1e-5}
                assert math.isclose(row[column], its[column], **tolerance), column
            else:
                assert row[column] == its[column]
    first, its_first = (tensors(run, 1, "optimizer") for run in (one, other))
    for name in (name for name in first if name.endswith("/exp_avg")):  # (1 − 0.9) times the first gradient, clipped
        assert np.abs(first[name] - its_first[name]).max() <= 1e-7


def assert_same_bytes(one: Run, other: Run, step: int) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        paths = (run.directory / f"checkpoints/step-{step:08}" / file for run in (one, other))
        assert next(paths).read_bytes() == next(paths).read_bytes()


def exact_columns(run: Run) -> list[dict[str, object]]:
    return [{column: row.get(column) for column in DETERMINISTIC} for row in read_metrics(run.directory)]


def test_two_processes_train_as_one_and_resume_each_other(trained):
    one, two = trained("one", (1, STEPS)), trained("two", (2, STEPS))
    assert_same_training(one, two)
    assert [start["workers"] for start in two.history().starts] == [2]
    resumed = trained("one-two-one", (1, 3), (2, 6), (1, STEPS))
    assert_same_training(one, resumed)
    assert [start["workers"] for start in resumed.history().starts] == [1, 2, 1]
    again = trained("two-two", (2, 5), (2, STEPS))  # a fixed number of processes resumes exactly
    assert_same_bytes(two, again, STEPS)
    assert exact_columns(two) == exact_columns(again)


def test_sharded(trained):
    one, sharded = trained("one", (1, STEPS)), trained("sharded", (2, STEPS), options=("--shard",))
    assert_same_training(one, sharded)
    resumed = trained("mixed", (2, 5), (1, 7), (2, STEPS), options=("--shard",))
    assert_same_training(one, resumed)


def test_bad_input_is_one_line_of_the_first_process(project, tmp_path):
    first, second = run_together(tmp_path, "run", "micro", "--set", "model.dropout=0.1")
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: model.dropout is 0.1, which 2 processes cannot divide among them")
    assert first.err.count("\n") == 1
    assert (first.out, second.out, second.err) == ("", "", "")
    first, second = run_together(tmp_path, "runs")
    assert (first.code, second.code, second.out) == (0, 0, "")


def test_a_process_that_dies_or_hangs_ends_the_others_in_one_line_and_nothing_is_saved(project, tmp_path, own_runs):
    def disturb(rank: int, number: signal.Signals) -> tuple[list[str], Run]:
        runs = own_runs(f"{number.name}-{rank}")

        def meanwhile(children):
            eventually(lambda: list(runs.glob("*/checkpoints/step-00000005/manifest.json")))
            os.kill(children[rank], number)
            os.waitid(os.P_PID, children[1 - rank], os.WEXITED | os.WNOWAIT)
            os.kill(children[rank], signal.SIGKILL)

        options = (*OPTIONS, "--steps", "1000000", "--timeout", "2", "--set", "train.checkpoint_every=1000000")
        ended = run_together(tmp_path, "run", "micro", *options, "--set", "train.keep_steps=[5]", meanwhile=meanwhile)
        assert ended[rank].code == -signal.SIGKILL
        assert ended[1 - rank].code == 1
        (directory,) = runs.glob("micro-*")
        assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000005"]
        return ended[1 - rank].err.splitlines(), load_run(directory)

    lines, run = disturb(1, signal.SIGKILL)
    assert lines == [
        "error: process 0 of 2 stops, because another process has ended; nothing was saved since the last checkpoint"
    ]
    assert run.history().outcome == "failed"
    lines, _ = disturb(0, signal.SIGKILL)
    assert lines == [
        "error: process 1 of 2 stops, because another process has ended; nothing was saved since the last checkpoint"
    ]
    lines, _ = disturb(1, signal.SIGSTOP)
    assert lines == [
        "error: process 0 of 2 stops, because another process did not answer in time (see --timeout); nothing was "
        "saved since the last checkpoint"
    ]
