"""W&B has one run and one row per logged step, however often the run is killed, resumed, extended and synced."""

import json
import subprocess
import sys

import pytest
from support import eventually, run_attempt
from wandb_server import Server

from gptlab.mirror import sync
from gptlab.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

OWN = {"_runtime", "_step", "_timestamp", "time"}


def without_times(history):
    return [{key: value for key, value in row.items() if key not in OWN} for row in history]


def rows(run):
    return without_times(read_metrics(run.directory))


def records(run):
    """The records of the run's only offline file."""
    (segment,) = (run.directory / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def offline_history(run):
    return without_times(record["history"]["item"] for record in records(run) if record["type"] == "history")


def steps(history):
    return [row["step"] for row in history]


def test_online_a_resumed_run_is_one_curve_and_an_extension_appends_to_it(server, curve, killed):
    killed(curve, at=50, steps=60, wandb="online")
    eventually(lambda: server.runs and server.run().exit_code == 1)  # the mirror finishes the upload and exits
    assert steps(server.run().history) == list(range(0, 55, 5))

    server.run().summary["step"] = 999  # a summary may differ from the rows
    server.last_row_delay_s = 1.5  # a server, or this machine, may be busy
    run = run_attempt(curve, steps=60, wandb="online").run
    assert run.history().starts[-1]["from_step"] == 40
    history = server.run().history
    assert steps(history) == list(range(0, 65, 5))
    assert server.run().sent == len(history)
    assert [row["attempt"] for row in history] == [1] * 11 + [2] * 2
    assert server.run().exit_code == 0

    server.last_row_delay_s = 0
    server.knows_beginnings = False  # as if the first attempt had ended before W&B noticed its start
    run = run_attempt(curve, steps=73, wandb="online").run
    run = run_attempt(curve, steps=80, wandb="online").run  # step 73 is not on the grid, so the run's own rows lose it
    assert steps(server.run().history) == [*range(0, 75, 5), 73, 75, 80]
    assert server.run().sent == 18
    assert server.run().summary["best/val_loss"] == min(row["val/loss"] for row in rows(run) if "val/loss" in row)


def test_offline_a_resumed_run_is_one_curve_for_every_reader_and_after_sync(
    server, curve, killed, tmp_path, monkeypatch
):
    killed(curve, at=50, steps=60, wandb="offline")
    run = run_attempt(curve, steps=60, wandb="offline").run
    assert offline_history(run) == rows(run)
    assert not server.runs

    with Server() as another, monkeypatch.context() as patch:  # with W&B's own command
        for name, value in another.environment.items():
            patch.setenv(name, value)
        (segment,) = (run.directory / "wandb").glob("offline-run-*")
        command = [sys.executable, "-m", "wandb", "sync", str(segment)]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        assert without_times(another.run().history) == rows(run)

    result = sync.sync_run(run)
    assert (result.synced, result.step, result.problem) == (True, 60, None)
    assert without_times(server.run().history) == rows(run)
    assert server.run().exit_code == 0
    assert sync.pending_runs() == []

    run_attempt(curve, steps=80, wandb="offline")
    assert sync.pending_runs() == [run]
    assert offline_history(run) == rows(run)
    run_attempt(curve, steps=100, wandb="online")
    assert not list((run.directory / "wandb").glob("offline-run-*"))  # otherwise `wandb sync` would upload old rows
    assert sync.pending_runs() == []
    assert sync.sync_run(run).step == 100
    assert steps(server.run().history) == list(range(0, 105, 5))
    assert server.run().sent == 21
