"""A run survives a crash or a full disk at any operation on its files.

The child processes are forked from this one, so they need not import anything; the runs are small, the crashes real.
"""

import errno
import os
import random
import resource
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from operations import Operations
from support import PATIENCE_S

from gptlab.checkpoints import write
from gptlab.checkpoints.manifest import (
    CHECKPOINTS,
    MODEL,
    OPTIMIZER,
    checkpoint_directory,
    compute_digest,
    list_checkpoints,
)
from gptlab.checkpoints.retention import STAGING
from gptlab.commands import evaluate
from gptlab.errors import GptlabError
from gptlab.terminal.console import Console
from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.run import Run, find_run, load_run
from gptlab.training.loop import Hooks, TrainingLoop
from gptlab.training.signals import StopSignals

pytestmark = pytest.mark.slow

PARTS = 4
"""Number of tests among which the operations are divided, so that they can run in parallel."""


@pytest.fixture(scope="module")
def small(micro):
    return micro.with_changes({"name": "small", "model.n_embd": 4, "model.n_layer": 1, "train.checkpoint_every": 5})


@pytest.fixture(scope="module")
def begun(small, cache, tmp_path_factory) -> Path:
    """A runs directory in which ten steps are done, with checkpoints at 5 and 10."""
    return trained_in(tmp_path_factory.mktemp("begun"), cache, small, 10)


@pytest.fixture(scope="module")
def finished(small, cache, tmp_path_factory) -> Run:
    """The same run, started with fifteen steps."""
    return load_run(next(trained_in(tmp_path_factory.mktemp("finished"), cache, small, 15).iterdir()))


def trained_in(runs: Path, cache: Path, experiment, steps: int) -> Path:
    from support import run_attempt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        run_attempt(experiment, steps=steps)
    return runs


def in_child(work: Callable[[], object]) -> int:
    """Call `work` in a forked child and return its wait status (0: success, 1 << 8: an expected error)."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except (GptlabError, OSError):
            code = 1
        except BaseException:
            traceback.print_exc()
            code = 99
        os._exit(code)
    return os.waitpid(child, 0)[1]


def goes_on(small, runs: Path, act_at: int, act: Callable[[], None], count_to: Path | None = None) -> int:
    """Extend the run from 10 to 15 steps in a child, call `act` at one operation, and return the wait status."""

    def work() -> None:
        from support import run_attempt

        operations = Operations(act_at, act)
        operations.watch(runs)
        run_attempt(small, steps=15)
        if count_to:
            count_to.write_text(str(operations.count))

    return in_child(work)


@pytest.fixture(scope="module")
def operations(small, begun, cache, tmp_path_factory) -> int:
    """The number of operations of an undisturbed extension."""
    folder = tmp_path_factory.mktemp("count")
    shutil.copytree(begun, folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        patch.setenv("GPTLAB_CACHE", str(cache))
        assert goes_on(small, folder / "runs", 0, lambda: None, folder / "count") == 0
    count = int((folder / "count").read_text())
    assert count > 25
    return count


def assert_every_checkpoint_is_whole(run: Run) -> None:
    for found in list_checkpoints(run.directory):
        assert {name: compute_digest(found.directory / name) for name in found.manifest.files} == found.manifest.files


def assert_finished_like(run: Run, finished: Run, steps: int = 15) -> None:
    assert (run.history().status, run.history().step) == ("complete", steps)
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (checkpoint_directory(r.directory, steps) / name for r in (run, finished))
        assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = (
        [{key: row.get(key) for key in DETERMINISTIC} for row in read_metrics(r.directory)] for r in (run, finished)
    )
    assert ours == theirs
    assert {path.name for path in (run.directory / CHECKPOINTS).iterdir()} == {
        path.name for path in (finished.directory / CHECKPOINTS).iterdir()
    }
    assert len(run.samples()) == len({row["step"] for row in run.samples()})


@pytest.mark.parametrize("part", range(PARTS))
def test_after_a_crash_at_any_file_operation_the_run_resumes_and_ends_with_the_same_bytes(
    small, begun, finished, operations, train, tmp_path, part
):
    for number in range(1 + part, operations + 1, PARTS):
        runs = tmp_path / "runs"
        shutil.copytree(begun, runs)
        status = goes_on(small, runs, number, lambda: os._exit(77))
        assert os.waitstatus_to_exitcode(status) == 77, f"no death at operation {number}"
        run = find_run("small")
        assert_every_checkpoint_is_whole(run)
        assert any(c.resumable and c.step >= 10 for c in list_checkpoints(run.directory))
        train(small, steps=15)
        assert_finished_like(run, finished)
        shutil.rmtree(runs)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_full_disk_at_any_file_operation_loses_no_checkpoint_and_the_run_resumes_later(
    small, begun, finished, operations, train, tmp_path, part
):
    for number in range(1 + part, operations + 1, PARTS):
        runs = tmp_path / "runs"
        shutil.copytree(begun, runs)
        status = goes_on(small, runs, number, no_space)
        assert os.waitstatus_to_exitcode(status) in {0, 1}, f"a traceback at operation {number}"
        run = find_run("small")
        assert not (run.directory / CHECKPOINTS / STAGING).exists()
        assert_every_checkpoint_is_whole(run)
        assert any(c.resumable and c.step >= 10 for c in list_checkpoints(run.directory))
        train(small, steps=15)
        assert_finished_like(run, finished)
        shutil.rmtree(runs)


def test_twenty_kills_at_least_half_of_them_during_a_save_lose_nothing(small, train, tmp_path, monkeypatch):
    """The process saves after every step and is killed with SIGKILL at twenty different moments."""
    large = {"model.n_embd": 128}  # files of 3 MB: a save takes milliseconds
    saving = small.with_changes({**large, "train.checkpoint_every": 1, "train.steps": 90})
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("GPTLAB_RUNS", str(tmp_path / "undisturbed"))
        undisturbed = train(saving).run
    staging = tmp_path / "runs" / undisturbed.id / CHECKPOINTS / STAGING
    inside, delays = 0, random.Random(0)
    for _ in range(20):
        before = newest_step(staging.parent)
        child = os.fork()
        if child == 0:
            train(saving)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if newest_step(staging.parent) > before and staging.exists():  # this child's, not an earlier one's
                time.sleep(delays.uniform(0, 0.004))  # anywhere in the save, or just after it
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.0002)  # a save is longer, and the child needs the processor
        inside += staging.exists()
        assert find_run(undisturbed.id).history().status == "interrupted", "it ended before it was killed"
        assert_every_checkpoint_is_whole(find_run(undisturbed.id))
    assert inside >= 10
    run = train(saving).run
    assert_finished_like(run, undisturbed, 90)
    assert len(run.history().attempts) == 20 + 2


def newest_step(checkpoints: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")), default=0)


@pytest.mark.parametrize("limit", [1_000, 10_000, 20_000])  # the model's file has 12 kB, the optimizer's 25 kB
def test_a_file_size_limit_is_a_one_line_error_and_the_run_resumes_later(
    small, begun, finished, train, tmp_path, monkeypatch, limit
):
    shutil.copytree(begun, tmp_path / "runs")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        train(small, steps=15)

    assert os.waitstatus_to_exitcode(in_child(work)) == 1
    assert_every_checkpoint_is_whole(find_run("small"))
    train(small, steps=15)
    assert_finished_like(find_run("small"), finished)


def test_too_little_disk_space_for_the_checkpoints_is_reported_before_the_first_step(
    train, gpt2_micro, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(GptlabError, match=r"need 0\.03 GiB more.*has 0\.00 GiB free.*GPTLAB_RUNS"):
        train(gpt2_micro)
    run = find_run("micro")
    assert (run.history().status, run.history().step, run.history().attempts) == ("interrupted", 0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once_and_older_checkpoints_stay_intact(
    small, begun, finished, train, tmp_path, monkeypatch, number
):
    shutil.copytree(begun, tmp_path / "runs")
    write_tensors, handle, received = write.write_tensors, StopSignals._handle, threading.Event()

    def noted_handle(signals, number, frame):
        handle(signals, number, frame)
        received.set()

    def interrupted_write(path, *rest):
        write_tensors(path, *rest)
        signal.pthread_kill(threading.main_thread().ident, number)  # after the first one the save continues
        assert received.wait(PATIENCE_S)  # two pending signals would merge into one
        for _ in range(20 * PATIENCE_S):  # after the second one it does not; Python may overlook one while it waits
            signal.pthread_kill(threading.main_thread().ident, number)
            time.sleep(0.05)

    def work() -> None:
        monkeypatch.setattr(write, "write_tensors", interrupted_write)
        monkeypatch.setattr(StopSignals, "_handle", noted_handle)
        train(small, steps=15)

    assert os.waitstatus_to_exitcode(in_child(work)) == 128 + number
    run = find_run("small")
    assert [c.step for c in list_checkpoints(run.directory)] == [5, 10]
    assert (run.directory / CHECKPOINTS / STAGING).is_dir()
    train(small, steps=15)
    assert_finished_like(run, finished)


def test_a_signal_during_a_save_ends_the_run_after_the_save(small, train, monkeypatch):
    write_tensors, pending = write.write_tensors, [signal.SIGTERM]

    def signalled_write(path, *rest):
        if pending:
            os.kill(os.getpid(), pending.pop())
        return write_tensors(path, *rest)

    monkeypatch.setattr(write, "write_tensors", signalled_write)
    result = train(small.with_changes({"train.checkpoint_every": 5}))
    assert result.exit_code == 143
    assert (result.run.history().status, result.run.history().step) == ("interrupted", 6)


def test_a_signal_before_the_first_step_ends_the_run_at_step_zero(small, train, monkeypatch):
    hooks = Hooks(on_start=[lambda: os.kill(os.getpid(), signal.SIGINT)])
    result = train(small, steps=10, hooks=hooks)
    assert result.exit_code == 130
    assert (result.run.history().status, result.run.history().step) == ("interrupted", 0)
    assert train(small, steps=10).run.history().status == "complete"


def test_out_of_memory_is_a_one_line_error_with_batch_size_and_sequence_length(small, train, monkeypatch):
    def run_out(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", run_out)
        with pytest.raises(GptlabError, match="out of memory with batch_size 2 × sequence_length 16"):
            train(small)
    assert find_run("small").history().status == "failed"


def test_out_of_memory_in_the_small_training_of_the_fingerprint_is_a_one_line_error(train, small, monkeypatch):
    def run_out(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("gptlab.training.fingerprint.evaluate", run_out)
    with pytest.raises(GptlabError, match="^out of memory; close other programs"):
        train(small.with_changes({"model.n_head": 1}))  # its fingerprint is in no cache


def test_out_of_memory_in_an_evaluation_is_a_one_line_error_without_a_batch_size(small, train, monkeypatch):
    run = train(small).run

    def run_out(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate", run_out)
    with pytest.raises(GptlabError, match=r"^out of memory; close other programs, or try --device cpu$"):
        evaluate.evaluate_run(run, step=None, text=None, device="cpu", console=Console())
