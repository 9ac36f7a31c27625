"""Several processes train one run and compute what one process computes, but for the order of sums."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from support import eventually, run_attempt
from together import run_together

from gptlab.checkpoints.tensors import write_tensors
from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.run import Run, load_run

STEPS = 10
SETTINGS = {
    "train.log_every": 1,
    "train.eval_every": 5,
    "train.checkpoint_every": 5,
    "train.keep_steps": [1],
    "data.val_windows": 5,
}
OPTIONS = ("--wandb", "off", *(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")))
LOST = "stops, because another process {}; nothing was saved since the last checkpoint"


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`own_runs(name)` makes commands write to another runs directory."""

    def use(name: str) -> Path:
        monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / name))
        return tmp_path / name

    return use


@pytest.fixture
def trained(project: Path, tmp_path: Path, own_runs, micro):
    """`trained(name, (kind, steps), …)` trains a run, in the runs directory of that name, to each number of steps.

    The kind is `one` for a process, `two` for two, and `sharded` for two that divide the state.
    """

    def train(name: str, *kinds_and_steps: tuple[str, int]) -> Run:
        runs = own_runs(name)
        for kind, steps in kinds_and_steps:
            if kind == "one":
                run_attempt(micro.with_changes(SETTINGS), steps=steps)
                continue
            shard = ("--shard",) if kind == "sharded" else ()
            ended = run_together(tmp_path, "run", "micro", *OPTIONS, "--steps", str(steps), *shard)
            assert [each.code for each in ended] == [0, 0], ended
            assert (ended[0].err, ended[1].out, ended[1].err) == ("", "", "")
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


def assert_gathered_as_written_at_once(run: Run) -> None:
    """Check that gathered files have the bytes that the writer of one process gives them."""
    for path in run.directory.glob("checkpoints/*/*.safetensors"):
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        at_once = run.directory / "at-once"
        write_tensors(at_once, load_tensors(path), metadata)
        assert at_once.read_bytes() == path.read_bytes()
        at_once.unlink()


def exact_columns(run: Run) -> list[dict[str, object]]:
    return [{column: row.get(column) for column in DETERMINISTIC} for row in read_metrics(run.directory)]


@pytest.mark.slow
def test_two_processes_train_as_one_and_each_resumes_the_other(trained):
    one, two, sharded = (trained(kind, (kind, STEPS)) for kind in ("one", "two", "sharded"))
    assert_same_training(one, two)
    assert_same_training(one, sharded)
    mixed = trained("mixed", ("one", 2), ("two", 4), ("sharded", 6), ("two", 8), ("one", STEPS))
    assert_same_training(one, mixed)
    starts = [(start["workers"], start["shard"]) for start in mixed.history().starts]
    assert starts == [(1, False), (2, False), (2, True), (2, False), (1, False)]
    assert_gathered_as_written_at_once(sharded)
    again = trained("again", ("two", 5), ("two", STEPS))  # a fixed number of processes resumes exactly
    assert_same_bytes(two, again, STEPS)
    assert exact_columns(two) == exact_columns(again)


def test_bad_input_is_one_line_of_the_first_process(project, tmp_path):
    first, second = run_together(tmp_path, "run", "micro", "--set", "model.dropout=0.1")
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: model.dropout is 0.1, which 2 processes cannot divide among them")
    assert first.err.count("\n") == 1
    assert (first.out, second.out, second.err) == ("", "", "")
    first, second = run_together(tmp_path, "sweep", "micro")
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert "call it without torchrun" in first.err
    first, second = run_together(tmp_path, "runs")
    assert (first.code, second.code, second.out) == (0, 0, "")


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_ends_the_others_in_one_line_and_nothing_is_saved(project, tmp_path, own_runs):
    def disturb(rank: int, number: signal.Signals) -> tuple[list[str], Run]:
        runs = own_runs(f"{number.name}-{rank}")

        def meanwhile(children):
            eventually(lambda: list(runs.glob("*/checkpoints/step-00000005/manifest.json")))
            os.kill(children[rank], number)
            os.waitid(os.P_PID, children[1 - rank], os.WEXITED | os.WNOWAIT)
            os.kill(children[rank], signal.SIGKILL)

        never = ("--set", "train.checkpoint_every=1000000", "--set", "train.eval_every=1000000")
        options = (*OPTIONS, *never, "--set", "train.keep_steps=[5]", "--steps", "1000000", "--timeout", "2")
        ended = run_together(tmp_path, "run", "micro", *options, meanwhile=meanwhile)
        assert ended[rank].code == -signal.SIGKILL
        assert ended[1 - rank].code == 1
        (directory,) = runs.glob("micro-*")
        assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000005"]
        return ended[1 - rank].err.splitlines(), load_run(directory)

    lines, run = disturb(1, signal.SIGKILL)
    assert lines == [f"error: process 0 of 2 {LOST.format('has ended')}"]
    assert run.history().outcome == "failed"
    lines, _ = disturb(0, signal.SIGKILL)
    assert lines == [f"error: process 1 of 2 {LOST.format('has ended')}"]
    lines, _ = disturb(1, signal.SIGSTOP)
    late = f"error: process 0 of 2 {LOST.format('did not answer in time (see --timeout)')}"
    assert lines == [late], "\n".join(lines)
