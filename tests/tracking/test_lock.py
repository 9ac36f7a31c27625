import errno
import fcntl
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


def test_a_second_process_fails_at_once_and_names_the_holder(tmp_path, other_process):
    with pytest.raises(GptlabError, match=rf"process {other_process.pid} on .* since 20"):
        RunLock(tmp_path).__enter__()


def test_the_lock_is_released_when_its_holder_dies(tmp_path, other_process):
    assert lock_holder(tmp_path).pid == other_process.pid
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert lock_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert lock_holder(tmp_path).pid == os.getpid()


def test_the_next_holder_knows_whether_the_last_one_was_killed(tmp_path, other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    with RunLock(tmp_path) as lock:
        assert lock.predecessor_was_killed
    with RunLock(tmp_path) as lock:
        assert not lock.predecessor_was_killed


def test_a_query_for_the_holder_never_blocks_the_lock(tmp_path):
    with RunLock(tmp_path):
        pass
    with (tmp_path / "heartbeat").open() as heartbeat:
        fcntl.flock(heartbeat, fcntl.LOCK_SH)  # as a concurrent query does
        fcntl.flock(heartbeat, fcntl.LOCK_UN)
        with RunLock(tmp_path):
            assert lock_holder(tmp_path) is not None
    assert lock_holder(tmp_path) is None


def test_a_run_that_was_never_trained_has_no_holder(tmp_path):
    assert lock_holder(tmp_path) is None


def test_a_beat_updates_the_time_of_the_heartbeat(tmp_path):
    with RunLock(tmp_path) as lock:
        os.utime(tmp_path / "heartbeat", (0, 0))
        lock.beat()
        assert (tmp_path / "heartbeat").stat().st_mtime > 0


def without_locks(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize(
    "number",
    [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.ENOLCK, errno.ENOTTY],
    ids=errno.errorcode.get,
)
def test_a_file_system_without_locks_is_an_error_that_names_the_directory_and_a_way_out(tmp_path, monkeypatch, number):
    (tmp_path / "heartbeat").touch()
    without_locks(monkeypatch, number)
    with pytest.raises(GptlabError, match=rf"{tmp_path} is on a file system without file locks .* set GPTLAB_RUNS"):
        RunLock(tmp_path).__enter__()
    assert lock_holder(tmp_path) is None, "runs on such a file system can be listed"


def test_a_heartbeat_whose_time_cannot_be_set_does_not_end_training(tmp_path, monkeypatch):
    def utime(*arguments):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", utime)
    with RunLock(tmp_path) as lock:
        lock.beat()
