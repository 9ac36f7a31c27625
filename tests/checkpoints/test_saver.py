"""Background saves hold the bytes of their step, delay nothing but the next update, and never fail silently."""

import errno
import os
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from support import PATIENCE_S

from gptlab.checkpoints import saver, tensors, write
from gptlab.checkpoints.manifest import CHECKPOINTS, MODEL, OPTIMIZER, LoopState, checkpoint_directory, list_checkpoints
from gptlab.checkpoints.retention import STAGING
from gptlab.checkpoints.saver import BackgroundSaver
from gptlab.data.windows import Windows
from gptlab.errors import DivergedError, GptlabError
from gptlab.model import gpt
from gptlab.tracking.metrics import read_metrics
from gptlab.tracking.run import find_run
from gptlab.training import optimizer, state
from gptlab.training.loop import Hooks
from gptlab.training.state import TrainingState


@pytest.fixture
def slowly(monkeypatch):
    """Reading a tensor takes far longer than a training step."""
    pieces = tensors.pieces

    def slow_pieces(tensor):
        for piece in pieces(tensor):
            time.sleep(0.003)
            yield piece

    monkeypatch.setattr(tensors, "pieces", slow_pieces)


@pytest.fixture
def failing(monkeypatch):
    """`failing(name, step)` makes that function fail with a full disk while it saves that step."""

    def arrange(name, step):
        module = saver if name == "apply_retention" else write
        save, original = saver.commit_checkpoint, getattr(module, name)
        saving = []

        def noted_save(*arguments, **options):
            saving.append(arguments[3]["step"])
            return save(*arguments, **options)

        def fail(*arguments, **options):
            if saving[-1:] == [step]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        monkeypatch.setattr(saver, "commit_checkpoint", noted_save)
        monkeypatch.setattr(module, name, fail)

    return arrange


def assert_same_files(run, other, step):
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (checkpoint_directory(r.directory, step) / name for r in (run, other))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_an_update_waits_until_the_save_has_read_the_tensors(train, micro, long_run, slowly):
    run = train(micro).run
    for step in (30, 40):
        assert_same_files(run, long_run, step)


def test_the_next_forward_pass_does_not_wait_for_a_save(train, micro, long_run, monkeypatch):
    begun, write_tensors, batch = threading.Event(), write.write_tensors, Windows.batch

    def write_late(*arguments):
        assert begun.wait(PATIENCE_S), "the step after the save does not begin before it is written"
        return write_tensors(*arguments)

    def noted_batch(windows, step):
        if step == 10:
            begun.set()
        return batch(windows, step)

    monkeypatch.setattr(write, "write_tensors", write_late)
    monkeypatch.setattr(Windows, "batch", noted_batch)
    assert_same_files(train(micro).run, long_run, 30)


def test_an_update_waits_only_until_the_tensors_are_read(train, micro, monkeypatch):
    done, flush = threading.Event(), write.fsync_file

    def flush_late(path):
        assert done.wait(PATIENCE_S), "training does not go on before the files are flushed"
        flush(path)

    def noted_step(step, loss):
        if step == 13:
            done.set()

    monkeypatch.setattr(write, "fsync_file", flush_late)
    hooks = Hooks(on_step=[noted_step])
    assert train(micro, steps=20, hooks=hooks).run.history().status == "complete"


def test_an_update_does_not_wait_if_the_tensors_are_copied_as_from_a_gpu(train, micro, long_run, monkeypatch):
    done, write_tensors = threading.Event(), write.write_tensors

    def write_late(*arguments):
        assert done.wait(PATIENCE_S), "training does not go on before the files are written"
        return write_tensors(*arguments)

    def noted_step(step, loss):
        if step == 33:
            done.set()

    monkeypatch.setattr(state, "on_host", lambda state: False)
    monkeypatch.setattr(write, "write_tensors", write_late)
    rarely = {"train.checkpoint_every": 30, "train.eval_every": 50}
    run = train(micro.with_changes(rarely), hooks=Hooks(on_step=[noted_step])).run
    assert_same_files_but_for_the_header(run, long_run, 30)


def assert_same_files_but_for_the_header(run, other, step):
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (load_file(checkpoint_directory(r.directory, step) / name) for r in (run, other))
        assert {key: tensor.tobytes() for key, tensor in ours.items()} == {
            key: tensor.tobytes() for key, tensor in theirs.items()
        }


def test_the_time_that_training_waited_is_in_the_metrics(train, micro, monkeypatch):
    waiting, write_tensors, wait_until_read = threading.Event(), write.write_tensors, BackgroundSaver.wait_until_read

    def write_later(*arguments):
        assert waiting.wait(PATIENCE_S)
        time.sleep(0.1)  # for each of the two files
        return write_tensors(*arguments)

    def noted_until_read(saver):
        waiting.set()
        wait_until_read(saver)

    monkeypatch.setattr(write, "write_tensors", write_later)
    monkeypatch.setattr(BackgroundSaver, "wait_until_read", noted_until_read)
    rows = {row["step"]: row for row in read_metrics(train(micro, steps=15).run.directory)}
    assert rows[15]["perf/ckpt_s"] >= 0.2
    assert "perf/ckpt_s" not in rows[10]
    assert rows[15]["elapsed_s"] + rows[15]["perf/ckpt_s"] <= rows[15]["time"] - rows[0]["time"]


@pytest.mark.slow
def test_two_saves_never_overlap(train, micro, slowly, monkeypatch):
    commit, running, most = saver.commit_checkpoint, [], []

    def noted_commit(*arguments, **options):
        running.append(arguments)
        most.append(len(running))
        checkpoint = commit(*arguments, **options)
        time.sleep(0.01)
        running.pop()
        return checkpoint

    monkeypatch.setattr(saver, "commit_checkpoint", noted_commit)
    train(micro.with_changes({"train.checkpoint_every": 1}), steps=5)
    assert most == [1] * 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["write_tensors", "fsync_file", "fsync_directory", "apply_retention"])
def test_a_failure_in_the_background_ends_training_at_the_next_step(train, micro, long_run, failing, monkeypatch, name):
    wait_until_read = BackgroundSaver.wait_until_read

    def until_it_failed(saver):
        wait([saver._saving], PATIENCE_S)
        wait_until_read(saver)

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundSaver, "wait_until_read", until_it_failed)
        failing(name, 20)
        with pytest.raises(OSError, match="No space left on device"):
            train(micro)
    run = find_run("micro")
    assert (run.history().status, run.history().attempts[-1]["step"]) == ("failed", 20)
    assert not (run.directory / CHECKPOINTS / STAGING).exists()
    assert 10 in [found.step for found in list_checkpoints(run.directory)]


@pytest.mark.parametrize("name", ["write_tensors", "fsync_file"])
def test_a_failure_of_the_last_save_is_raised(train, micro, failing, name):
    failing(name, 20)
    with pytest.raises(OSError, match="No space left on device"):
        train(micro, steps=20)
    assert find_run("micro").history().status == "failed"


def test_a_failure_since_the_last_update_is_raised_at_the_next_save(train, micro, failing, monkeypatch):
    failing("fsync_file", 10)
    updated, fail = threading.Event(), write.fsync_file

    def fail_late(path):
        assert updated.wait(PATIENCE_S)
        fail(path)

    def noted_step(step, loss):
        if step == 11:
            updated.set()

    monkeypatch.setattr(write, "fsync_file", fail_late)
    rarely, hooks = (
        micro.with_changes({"train.checkpoint_every": 11, "train.log_every": 100}),
        Hooks(on_step=[noted_step]),
    )
    with pytest.raises(OSError, match="No space left on device"):
        train(rarely, hooks=hooks)
    assert find_run("micro").history().attempts[-1]["step"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("error", [DivergedError("it diverged"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_save_in_flight_is_committed_before_an_error_ends_training(
    train, micro, long_run, slowly, monkeypatch, error
):
    batch = Windows.batch

    def failing_batch(windows, step):
        if step == 30:
            assert not checkpoint_directory(find_run("micro").directory, 30).exists()
            raise error
        return batch(windows, step)

    monkeypatch.setattr(Windows, "batch", failing_batch)
    with pytest.raises(type(error)):
        train(micro)
    assert_same_files(find_run("micro"), long_run, 30)


def test_the_first_of_two_errors_is_raised(train, micro, failing, monkeypatch):
    monkeypatch.setattr(BackgroundSaver, "wait_until_read", lambda saver: 1 / 0)
    failing("write_tensors", 0)
    with pytest.raises(ZeroDivisionError):
        train(micro.with_changes({"train.snapshots": True}))


@pytest.mark.slow
def test_a_signal_while_a_save_is_in_flight_saves_once_more_and_the_run_resumes_exactly(
    train, micro, long_run, slowly, signal_at_step
):
    interrupted = train(micro, hooks=signal_at_step(31))
    assert interrupted.exit_code == 130
    assert [found.step for found in list_checkpoints(interrupted.run.directory) if found.resumable] == [30, 31]
    assert_same_files(interrupted.run, long_run, 30)
    assert_same_files(train(micro).run, long_run, 40)


def test_a_file_that_does_not_read_back_is_not_committed_and_older_checkpoints_stay(train, micro, monkeypatch):
    run = train(micro, steps=20).run

    def damage(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(write, "fsync_file", damage)
    with pytest.raises(GptlabError, match="model.safetensors does not read back as it was written"):
        train(micro)
    assert [found.step for found in list_checkpoints(run.directory) if found.resumable] == [10, 20]
    assert not (run.directory / CHECKPOINTS / STAGING).exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_repeated_saves_take_no_additional_memory(train, gpt2_micro):
    run = train(gpt2_micro, steps=1).run
    model = gpt.build(gpt2_micro.with_changes({"model.n_embd": 64}).model, seed=0)
    adamw = optimizer.build(model, gpt2_micro.train, fused=True)
    model(torch.arange(8).view(1, 8), torch.arange(8).view(1, 8)).backward()
    adamw.step()
    size = sum(t.nbytes for t in [*model.state_dict().values(), *optimizer.state_tensors(model, adamw).values()])
    assert size > 70 << 20
    training = TrainingState(model, adamw)
    with BackgroundSaver(run.directory, gpt2_micro.train) as saving:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = memory("VmRSS")
        for step in range(2, 6):
            files = state.checkpoint_files(training, resumable=True, copy=False)
            saving.save(files, {}, state.manifest_fields(run.record, 1, step, LoopState()), copied=False)
        saving.finish()
    assert memory("VmHWM") - before < size / 8


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
