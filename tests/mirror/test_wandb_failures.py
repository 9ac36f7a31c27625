"""When W&B fails, training keeps all rows, one line reports the failure, and `gptlab sync` repairs it."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import PATIENCE_S, descendants, run_attempt
from wandb_server import KEY

from gptlab import project
from gptlab.mirror import mirror, sync
from gptlab.mirror.server import Server
from gptlab.mirror.wandb_run import choose_mode
from gptlab.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = list(range(0, 65, 5))


@pytest.fixture
def impatient(monkeypatch):
    """W&B has two seconds to finish."""
    monkeypatch.setattr(mirror, "FINISH_TIMEOUT_S", 2.0)
    monkeypatch.setattr(mirror, "EXIT_GRACE_S", 1.0)


def steps(rows):
    return [row["step"] for row in rows]


def notices(captured):
    return [line for line in captured.err.splitlines() if "W&B is incomplete" in line]


def repair_and_sync(server, run):
    """Remove the cause and sync, as the notice suggests; the server has every row exactly once."""
    server.fault = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "FINISH_TIMEOUT_S", 60.0)
        result = sync.sync_run(run)
    assert (result.synced, result.step) == (True, 60), result.problem
    assert steps(server.run().history) == STEPS
    assert server.run().sent == len(STEPS)


def assert_training_was_unaffected(result, captured):
    assert result.run.history().status == "complete"
    assert steps(read_metrics(result.run.directory)) == STEPS
    (notice,) = notices(captured)
    assert f"gptlab sync {result.run.id}" in notice


def test_a_server_failure_during_a_run_is_one_line(server, curve, at_row, impatient, capsys):
    def die(mirrored):
        mirrored.wait_for("url")
        server.fault = 503

    result = run_attempt(curve, steps=60, wandb="online", hooks=at_row(20, die))
    assert_training_was_unaffected(result, capsys.readouterr())
    repair_and_sync(server, result.run)


@pytest.mark.parametrize("fault", [500, 401, "stall"])
def test_a_server_failure_during_an_upload_is_one_line_and_a_sync_uploads_the_rest(
    server, curve, impatient, capsys, fault
):
    server.fault_after_rows = (6, fault)
    result = run_attempt(curve, steps=60, wandb="online")
    assert_training_was_unaffected(result, capsys.readouterr())
    assert steps(server.run().history) == STEPS[:6]
    server.run().summary["step"] = 60  # wrong on purpose: the summary claims that all rows arrived
    server.fault_after_rows = None
    repair_and_sync(server, result.run)


SMALL_DISK = """
set -u
mount -t tmpfs -o size=6m tmpfs "$RUN/wandb"
"$@" > "$OUT/out" 2> "$OUT/err" &
while ! ls "$RUN"/wandb/*/*.wandb > "$OUT/seen" 2>&1; do sleep 0.1; done
head -c 10m /dev/zero > "$RUN/wandb/filler" 2> "$OUT/filler.err"
while ! grep -q 'W&B is incomplete' "$OUT/out"; do sleep 0.1; done
kill -TERM $!
wait $!; echo $? > "$OUT/rc"
"""


@pytest.mark.skipif(
    subprocess.run("unshare -rm true", shell=True, capture_output=True).returncode != 0,  # noqa: S602 - a constant
    reason="mounting a small disk needs unshare with user namespaces",
)
def test_a_full_disk_for_wandb_is_one_line_and_training_continues(server, curve, tmp_path):
    run = run_attempt(curve, steps=20, wandb="off").run
    (run.directory / "wandb").mkdir()
    resume = [sys.executable, "-m", "gptlab", "resume", str(run.directory), "--steps", "1000000", "--wandb", "offline"]
    environment = {**os.environ, "RUN": str(run.directory), "OUT": str(tmp_path)}
    script = ["unshare", "-rm", "bash", "-c", SMALL_DISK, "bash", *resume]
    subprocess.run(script, env=environment, cwd=project.root(), check=True, timeout=PATIENCE_S)
    output = (tmp_path / "out").read_text()
    assert (tmp_path / "rc").read_text() == f"{128 + signal.SIGTERM}\n", output
    assert output.count("W&B is incomplete (the disk of") == 1
    assert run.history().outcome == "interrupted"
    rows = read_metrics(run.directory)
    assert steps(rows) == list(range(0, 5 * len(rows), 5))
    assert sync.sync_run(run).synced
    assert steps(server.run().history) == steps(rows)


def core_of(mirrored):
    """The process id of W&B's service."""
    (core,) = (pid for pid, name in descendants(mirror_of(mirrored)).items() if name == "wandb-core")
    return core


def mirror_of(mirrored):
    """The process id of the mirror."""
    return mirrored._child.process.pid


@pytest.mark.parametrize("victim", [core_of, mirror_of], ids=["wandb-core", "the mirror"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_training_completes_when_a_process_of_wandb_is_killed_or_hangs(
    server, curve, at_row, impatient, capsys, victim, number
):
    hit = []

    def strike(mirrored):
        mirrored.wait_for("url")
        hit.append(victim(mirrored))
        os.kill(hit[0], number)

    result = run_attempt(curve, steps=60, wandb="online", hooks=at_row(20, strike))
    assert_training_was_unaffected(result, capsys.readouterr())
    if number == signal.SIGSTOP and victim is core_of:
        os.kill(hit[0], signal.SIGCONT)  # it exits by itself because its parent is gone
    repair_and_sync(server, result.run)


def test_a_rejected_key_means_offline_and_the_run_is_synced_later(server, curve, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "9" * 40)
    run = run_attempt(curve, steps=60, wandb=None).run
    log = (run.directory / "log.txt").read_text()
    assert f"W&B         offline ({server.url} rejects the API key)" in log
    assert sync.sync_run(run).problem == f"{server.url} rejects the API key"
    assert not server.runs
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    repair_and_sync(server, run)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (None, None),
        (401, "rejects the API key"),
        (403, "rejects the API key"),
        (500, "returned HTTP error 500"),
        ("stall", "does not respond"),
    ],
)
def test_the_probe_reports_why_a_server_is_unavailable(server, fault, reason):
    server.fault = fault
    expected = reason and f"{server.url} {reason}"
    assert Server(server.url, KEY).unavailable_reason() == expected


def test_the_probe_reports_a_closed_port():
    assert Server("http://127.0.0.1:9", KEY).unavailable_reason() == "http://127.0.0.1:9 does not respond"


def test_the_probe_is_bounded_for_name_resolution_and_slow_responses(monkeypatch):
    forever = threading.Event()  # without a bound the test would never end
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *arguments, **options: forever.wait())
        reason = Server("http://somewhere.invalid", KEY).unavailable_reason()
        assert reason == "http://somewhere.invalid does not respond"
    with socket.create_server(("127.0.0.1", 0)) as dripping:

        def drip():
            connection, _ = dripping.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not forever.wait(0.1):
                connection.sendall(b" ")

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{dripping.getsockname()[1]}"
        assert Server(url, KEY).unavailable_reason() == f"{url} does not respond"
    forever.set()


@pytest.mark.parametrize(("value", "mode"), [("disabled", "off"), ("offline", "offline"), ("online", "online")])
def test_the_wandb_mode_variable_is_respected(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode(None) == (mode, "set by WANDB_MODE")
    assert choose_mode("off") == ("off", "requested")


def test_wandb_settings_inside_a_run_are_not_read(micro, monkeypatch):
    """wandb reads settings in its working directory (wandb/sdk/lib/settings_file.py)."""
    run = run_attempt(micro, steps=10).run
    monkeypatch.chdir(run.directory)
    mirrored = mirror.Mirror(run, "offline", pytest.fail)
    assert Path(f"/proc/{mirror_of(mirrored)}/cwd").readlink() == project.root()
    assert not run.directory.is_relative_to(project.root())
    mirrored.finish()
