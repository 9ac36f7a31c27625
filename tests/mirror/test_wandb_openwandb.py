"""The same curve on another W&B-compatible server: openwandb from PyPI, if it is installed.

It is not a dependency, because its license is non-commercial. Install it in an environment of its own:

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install openwandb
    GPTLAB_OPENWANDB=ELSEWHERE/bin/openwandb make test

Version 0.5.25 ignores offsets, so rows that are sent again are duplicated. It reports neither a run's last row nor
whether the run exists, so the client treats each resumed run as new.
"""

import os
import re
import socket
import sqlite3
import subprocess
from contextlib import closing

import pytest
from support import eventually, run_attempt

from gptlab.mirror import sync
from gptlab.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

PROGRAM = os.environ.get("GPTLAB_OPENWANDB")


@pytest.fixture
def openwandb(tmp_path, monkeypatch):
    """The server's database; this process and its children have a key."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log_path = tmp_path / "openwandb.log"
    command = [PROGRAM, "serve", "--host", "127.0.0.1", "-p", str(port), "--data-dir", str(tmp_path / "openwandb")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with log_path.open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        eventually(lambda: "Uvicorn running" in log_path.read_text())
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", re.search(r"WANDB_API_KEY=(\S+)", log_path.read_text())[1])
        yield tmp_path / "openwandb" / "openwandb.db"
        process.terminate()


def query(database, statement):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.skipif(not PROGRAM, reason="GPTLAB_OPENWANDB is not set to the path of openwandb")
def test_a_compatible_server_shows_one_curve(openwandb, curve, killed):
    killed(curve, at=50, steps=60, wandb="online")
    eventually(lambda: query(openwandb, "SELECT 1 FROM runs WHERE state IN ('finished', 'failed', 'crashed')"))
    run_attempt(curve, steps=60, wandb="online")
    run = run_attempt(curve, steps=80, wandb="offline").run
    for _ in range(2):
        assert sync.sync_run(run).step == 80
    assert query(openwandb, "SELECT run_id, display_name FROM runs") == [(run.record.wandb_id, "curve-s0")]
    for column in ("tokens", "train/loss", "val/loss"):
        ours = [(row["step"], row[column]) for row in read_metrics(run.directory) if column in row]
        theirs = query(openwandb, f"SELECT step, value FROM metrics WHERE key = '{column}' ORDER BY id")  # noqa: S608
        assert theirs == ours
