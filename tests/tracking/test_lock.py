import os
import signal
import subprocess
import sys

import pytest

from gptlab.errors import GptlabError
from gptlab.tracking.lock import RunLock, lock_holder

HOLD = "import sys; from pathlib import Path; from gptlab.tracking.lock import RunLock\n" \
    "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip


@pytest.fixture
def other_process(tmp_path):
    """A real process that holds the lock until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_fails_at_once_and_says_who_holds_the_run(tmp_path, other_process):
    with pytest.raises(GptlabError, match=rf"process {other_process.pid} on .* since 20"):
        RunLock(tmp_path).__enter__()


def test_the_lock_dies_with_its_holder(tmp_path, other_process):
    assert lock_holder(tmp_path).pid == other_process.pid
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert lock_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert lock_holder(tmp_path).pid == os.getpid()


def test_asking_who_holds_a_run_never_stands_in_the_way(tmp_path):
    with RunLock(tmp_path):
        pass
    with (tmp_path / "heartbeat").open() as heartbeat:
        import fcntl

        fcntl.flock(heartbeat, fcntl.LOCK_SH)  # somebody asks, at this moment
        fcntl.flock(heartbeat, fcntl.LOCK_UN)
        with RunLock(tmp_path):
            assert lock_holder(tmp_path) is not None
    assert lock_holder(tmp_path) is None


def test_nobody_holds_a_run_that_was_never_trained(tmp_path):
    assert lock_holder(tmp_path) is None


def test_the_heartbeat_shows_life(tmp_path):
    with RunLock(tmp_path) as lock:
        os.utime(tmp_path / "heartbeat", (0, 0))
        lock.beat()
        assert (tmp_path / "heartbeat").stat().st_mtime > 0
