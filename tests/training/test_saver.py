"""A save is written beside training: it holds the bytes of its step, stands in nobody's way, and never fails unseen."""

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

from gptlab.data.windows import Windows
from gptlab.errors import DivergedError, GptlabError
from gptlab.model import gpt
from gptlab.tracking.checkpoints import CHECKPOINTS, MODEL, OPTIMIZER, Progress, directory_of, list_checkpoints
from gptlab.tracking.metrics import MetricsFile, read_metrics
from gptlab.tracking.run import find
from gptlab.training import attempt, checkpoint, optimizer, saver, tensors
from gptlab.training.loop import Trainer
from gptlab.training.saver import Saver


@pytest.fixture
def slowly(monkeypatch):
    """Every tensor takes far longer to be read than a step of training takes."""
    pieces = tensors.pieces

    def slow_pieces(tensor):
        for piece in pieces(tensor):
            time.sleep(0.003)
            yield piece

    monkeypatch.setattr(tensors, "pieces", slow_pieces)


@pytest.fixture
def failing(monkeypatch):
    """`failing(function, step)` lets the disk be full when that function of `checkpoint` saves that step."""

    def arrange(name, step):
        save, original = checkpoint.save, getattr(checkpoint, name)
        saving = []

        def noted_save(*arguments, **options):
            saving.append(arguments[3]["step"])
            return save(*arguments, **options)

        def fail(*arguments, **options):
            if saving[-1:] == [step]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        monkeypatch.setattr(checkpoint, "save", noted_save)
        monkeypatch.setattr(checkpoint, name, fail)

    return arrange


def assert_same_files(run, other, step):
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (directory_of(r.directory, step) / name for r in (run, other))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_update_waits_until_the_tensors_of_its_step_are_read(train, micro, long_run, slowly):
    run = train(micro).run
    for step in (30, 40):
        assert_same_files(run, long_run, step)


def test_the_next_forward_pass_waits_for_nothing(train, micro, long_run, monkeypatch):
    begun, write, batch = threading.Event(), checkpoint.write_tensors, Windows.batch

    def write_late(*arguments):
        assert begun.wait(PATIENCE_S), "the step after the save does not begin before it is written"
        return write(*arguments)

    def noted_batch(windows, step):
        if step == 10:
            begun.set()
        return batch(windows, step)

    monkeypatch.setattr(checkpoint, "write_tensors", write_late)
    monkeypatch.setattr(Windows, "batch", noted_batch)
    assert_same_files(train(micro).run, long_run, 30)


def test_an_update_waits_for_nothing_but_the_reading(train, micro, monkeypatch):
    done, flush, watch = threading.Event(), checkpoint.fsync_file, attempt._Watchers.step

    def flush_late(path):
        assert done.wait(PATIENCE_S), "training does not go on before the files are flushed"
        flush(path)

    def noted_step(watchers, step, loss):
        if step == 13:
            done.set()
        watch(watchers, step, loss)

    monkeypatch.setattr(checkpoint, "fsync_file", flush_late)
    monkeypatch.setattr(attempt._Watchers, "step", noted_step)
    assert train(micro, steps=20).run.status() == "complete"


def test_an_update_waits_for_nothing_where_the_tensors_are_copied_as_from_a_gpu(train, micro, long_run, monkeypatch):
    done, write, watch = threading.Event(), checkpoint.write_tensors, attempt._Watchers.step

    def write_late(*arguments):
        assert done.wait(PATIENCE_S), "training does not go on before the files are written"
        return write(*arguments)

    def noted_step(watchers, step, loss):
        if step == 33:
            done.set()
        watch(watchers, step, loss)

    monkeypatch.setattr(saver, "is_elsewhere", lambda model: True)
    monkeypatch.setattr(checkpoint, "write_tensors", write_late)
    monkeypatch.setattr(attempt._Watchers, "step", noted_step)
    rarely = {"train.checkpoint_every": 30, "train.eval_every": 50}
    run = train(micro.with_changes(rarely)).run
    assert_same_files_but_for_the_header(run, long_run, 30)


def assert_same_files_but_for_the_header(run, other, step):
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (load_file(directory_of(r.directory, step) / name) for r in (run, other))
        assert {key: tensor.tobytes() for key, tensor in ours.items()} == {
            key: tensor.tobytes() for key, tensor in theirs.items()
        }


def test_what_training_waited_for_is_in_the_metrics(train, micro, monkeypatch):
    waiting, write, until_read = threading.Event(), checkpoint.write_tensors, Saver.until_read

    def write_later(*arguments):
        assert waiting.wait(PATIENCE_S)
        time.sleep(0.1)  # for each of two files
        return write(*arguments)

    def noted_until_read(saver):
        waiting.set()
        until_read(saver)

    monkeypatch.setattr(checkpoint, "write_tensors", write_later)
    monkeypatch.setattr(Saver, "until_read", noted_until_read)
    rows = {row["step"]: row for row in read_metrics(train(micro, steps=15).run.directory)}
    assert rows[15]["perf/ckpt_s"] >= 0.2
    assert "perf/ckpt_s" not in rows[10]
    assert rows[15]["elapsed_s"] + rows[15]["perf/ckpt_s"] <= rows[15]["time"] - rows[0]["time"]


def test_two_saves_never_overlap(train, micro, slowly, monkeypatch):
    commit, running, most = Saver._commit, [], []

    def noted_commit(*arguments):
        running.append(arguments)
        most.append(len(running))
        commit(*arguments)
        time.sleep(0.01)
        running.pop()

    monkeypatch.setattr(Saver, "_commit", noted_commit)
    train(micro.with_changes({"train.checkpoint_every": 1}), steps=5)
    assert most == [1] * 5


@pytest.mark.parametrize("name", ["write_tensors", "fsync_file", "fsync_directory", "retain"])
def test_what_fails_in_the_background_ends_training_at_the_next_step(
    train, micro, long_run, failing, monkeypatch, name
):
    until_read = Saver.until_read

    def until_it_failed(saver):
        wait([saver._saving], PATIENCE_S)
        until_read(saver)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "until_read", until_it_failed)
        failing(name, 20)
        with pytest.raises(OSError, match="No space left on device"):
            train(micro)
    run = find("micro")
    assert (run.status(), run.attempts()[-1]["step"]) == ("failed", 20)
    assert not (run.directory / CHECKPOINTS / checkpoint.STAGING).exists()
    assert 10 in [found.step for found in list_checkpoints(run.directory)]


@pytest.mark.parametrize("name", ["write_tensors", "fsync_file"])
def test_the_last_save_does_not_fail_unseen(train, micro, failing, name):
    failing(name, 20)
    with pytest.raises(OSError, match="No space left on device"):
        train(micro, steps=20)
    assert find("micro").status() == "failed"


def test_what_failed_since_the_last_update_is_told_at_the_next_save(train, micro, failing, monkeypatch):
    failing("fsync_file", 10)
    updated, fail, watch = threading.Event(), checkpoint.fsync_file, attempt._Watchers.step

    def fail_late(path):
        assert updated.wait(PATIENCE_S)
        fail(path)

    def noted_step(watchers, step, loss):
        watch(watchers, step, loss)
        if step == 11:
            updated.set()

    monkeypatch.setattr(checkpoint, "fsync_file", fail_late)
    monkeypatch.setattr(attempt._Watchers, "step", noted_step)
    with pytest.raises(OSError, match="No space left on device"):
        train(micro.with_changes({"train.checkpoint_every": 11, "train.log_every": 100}))
    assert find("micro").attempts()[-1]["step"] == 11


@pytest.mark.parametrize("error", [DivergedError("it diverged"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_whatever_ends_training_the_save_in_flight_is_committed_first(
    train, micro, long_run, slowly, monkeypatch, error
):
    step = Trainer._train_step

    def failing_step(trainer):
        if trainer.step == 30:
            assert not directory_of(trainer.run.directory, 30).exists()
            raise error
        step(trainer)

    monkeypatch.setattr(Trainer, "_train_step", failing_step)
    with pytest.raises(type(error)):
        train(micro)
    assert_same_files(find("micro"), long_run, 30)


def test_of_two_errors_the_one_that_came_first_is_told(train, micro, failing, monkeypatch):
    monkeypatch.setattr(Trainer, "_wait_for_saver", lambda trainer: 1 / 0)
    failing("write_tensors", 0)
    with pytest.raises(ZeroDivisionError):
        train(micro.with_changes({"train.snapshots": True}))


def test_a_signal_while_a_save_is_in_flight_saves_once_more_and_the_run_goes_on_exactly(
    train, micro, long_run, slowly, signal_at_step
):
    signal_at_step(31)
    interrupted = train(micro)
    assert interrupted.exit_code == 130
    assert [found.step for found in list_checkpoints(interrupted.run.directory) if found.resumable] == [30, 31]
    assert_same_files(interrupted.run, long_run, 30)
    assert_same_files(train(micro).run, long_run, 40)


def test_a_file_that_does_not_read_back_is_not_committed_and_costs_no_older_checkpoint(train, micro, monkeypatch):
    run = train(micro, steps=20).run

    def damage(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "fsync_file", damage)
    with pytest.raises(GptlabError, match="model.safetensors does not read back as it was written"):
        train(micro)
    assert [found.step for found in list_checkpoints(run.directory) if found.resumable] == [10, 20]
    assert not (run.directory / CHECKPOINTS / checkpoint.STAGING).exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_saving_takes_no_memory_however_often(train, micro):
    run = train(micro, steps=1).run
    model = gpt.build(micro.with_changes({"model.n_embd": 64}).model, seed=0)
    adamw = optimizer.build(model, micro.train, fused=True)
    model(torch.arange(8).view(1, 8), torch.arange(8).view(1, 8)).backward()
    adamw.step()
    state = sum(t.nbytes for t in [*model.state_dict().values(), *optimizer.state_tensors(model, adamw).values()])
    assert state > 70 << 20
    with MetricsFile(run.directory, 0) as metrics, Saver(run, model, adamw, metrics) as saver:
        Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
        before = memory("VmRSS")
        for step in range(2, 6):
            saver.save(step, Progress(), {}, resumable=True)
        saver.finish()
    assert memory("VmHWM") - before < state / 8


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
