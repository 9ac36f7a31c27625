"""A run that W&B should have and does not have is incomplete, whatever the reason: one line, and `sync` finds it."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from support import run_attempt

from gptlab.commands.sync import line, nothing_to_upload
from gptlab.mirror import child, mirror, sync
from gptlab.tracking.run import load_run


def notices(captured):
    return [line for line in captured.err.splitlines() if "W&B is incomplete" in line]


def start_fails_with(monkeypatch, folder: Path, code: str) -> None:
    """Each Python process started from now on executes this code first."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.write(2, b'no\\n\\x1b[31mpower\\n\\n'); os._exit(7)", "exited with code 7: �[31mpower"),
        ("import os; os._exit(0)", "exited with code 0"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
    ids=["says why", "says nothing", "is killed"],
)
def test_a_mirror_that_dies_at_start_is_one_line_and_the_run_is_pending(
    micro, tmp_path, monkeypatch, capsys, code, reason
):
    start_fails_with(monkeypatch, tmp_path, code)
    result = run_attempt(micro, steps=10, wandb="offline")
    captured = capsys.readouterr()
    (notice,) = notices(captured)
    assert f"W&B is incomplete (the mirror process {reason}); metrics.jsonl has everything" in notice
    assert notice.endswith(f"gptlab sync {result.run.id}")
    assert f"W&B         failed (the mirror process {reason})" in captured.err
    assert result.run.history().outcome == "complete"
    assert sync.pending_runs() == [result.run]
    assert sync.sync_run(result.run).problem == f"the mirror process {reason}".replace("�", "\x1b")
    assert "\x1b" not in line(sync.sync_run(result.run))


def test_a_mirror_that_does_not_start_in_time_is_one_line_and_the_run_is_pending(micro, tmp_path, monkeypatch, capsys):
    for bound in ("START_TIMEOUT_S", "FINISH_TIMEOUT_S", "EXIT_GRACE_S"):
        monkeypatch.setattr(mirror, bound, 0.1)
    start_fails_with(monkeypatch, tmp_path, "import time; time.sleep(600)")  # until it is killed
    run = run_attempt(micro, steps=10, wandb="online").run
    captured = capsys.readouterr()
    assert "W&B         not ready yet" in captured.err
    (notice,) = notices(captured)
    assert "(the mirror process did not start in time)" in notice
    assert sync.pending_runs() == [run]


def test_a_mirror_that_cannot_be_started_is_one_line_and_the_run_is_pending(micro, monkeypatch, capsys):
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    run = run_attempt(micro, steps=10, wandb=None).run
    (notice,) = notices(capsys.readouterr())
    assert "(the mirror process cannot be started: No such file or directory)" in notice
    assert run.history().starts[0]["wandb"] == "auto"
    assert sync.pending_runs() == [run]


@pytest.mark.slow
def test_a_broken_wandb_is_one_line_and_the_run_is_pending(micro, tmp_path, monkeypatch, capsys):
    start_fails_with(monkeypatch, tmp_path, "")
    (tmp_path / "site" / "wandb.py").write_text("raise RuntimeError('half\\nan installation')")
    run = run_attempt(micro, steps=10, wandb=None).run
    (notice,) = notices(capsys.readouterr())
    assert "(wandb does not work: half an installation)" in notice
    assert sync.pending_runs() == [run]


def test_a_report_that_is_no_json_object_is_skipped():
    for garbage in (b"", b"\n", b'{"step": 1', b"[1]", b"7", b"\xff\xfe"):
        assert child._parse_report(garbage) == {}
    assert child._parse_report(b'{"step": 1}\n') == {"step": 1}


def test_an_attempt_that_never_began_leaves_no_notice(micro, tmp_path, monkeypatch, capsys):
    run = run_attempt(micro, steps=10).run
    (run.directory / "attempts.jsonl").unlink()
    start_fails_with(monkeypatch, tmp_path, "import os; os._exit(7)")
    mirrored = mirror.Mirror(run, "offline", pytest.fail)
    mirrored.finish()
    assert "exited with code 7" in mirrored.report["error"]


@pytest.mark.parametrize("value", ["disabled", "offline"])
def test_the_mode_off_is_private_and_another_one_is_pending(micro, tmp_path, monkeypatch, value):
    monkeypatch.setenv("WANDB_MODE", value)
    start_fails_with(monkeypatch, tmp_path, "import os; os._exit(7)")
    run = run_attempt(micro, steps=10, wandb=None).run
    assert run.history().starts[0]["wandb"] == ("off" if value == "disabled" else "auto")
    assert sync.pending_runs() == ([] if value == "disabled" else [run])


def test_a_copy_of_a_run_is_not_sent_as_the_original(micro, monkeypatch):
    run = run_attempt(micro, steps=10).run
    (run.directory / "wandb").mkdir()
    copy = load_run(Path(shutil.copytree(run.directory, run.directory.with_name("copy"))))
    assert sync.pending_runs() == [run]
    problem = f"{copy.directory} is a copy: its directory is not named {run.id}"
    assert line(sync.sync_run(copy)) == f"{run.id}  not synced: {problem}"
    assert mirror.Mirror(copy, "online", pytest.fail).mode() == f"off ({problem})"


def test_sync_says_complete_only_if_every_mirrored_run_is(micro, caplog, request):
    run, private = run_attempt(micro, steps=10).run, run_attempt(micro, 1, steps=10).run
    complete = "nothing to upload: all mirrored runs are complete in W&B"
    assert nothing_to_upload() == complete
    (run.directory / "wandb").mkdir()
    assert sync.pending_runs() == [run]
    sync.SyncedSizes.of(run).save(run)
    assert (sync.pending_runs(), nothing_to_upload()) == ([], complete)
    for damage in ("", "{}", "[]", "\0", '{"attempts_bytes": -1, "metrics_bytes": 1}', '{"attempts_bytes": 1e999}'):
        (run.directory / sync.SYNCED).write_text(damage)
        assert sync.pending_runs() == [run]
    (run.directory / sync.SYNCED).unlink()
    (run.directory / sync.SYNCED).mkdir()
    assert sync.pending_runs() == [run]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptlab.tracking.history.lock_holder", lambda directory: directory == run.directory)
        assert sync.pending_runs() == []
        assert nothing_to_upload() == "nothing to upload now; runs that may be incomplete in W&B: 1 still training"
    run.directory.rename(run.directory.with_name("renamed"))
    (private.directory / "run.json").write_text("{")
    assert sync.pending_runs() == []
    assert nothing_to_upload().endswith("incomplete in W&B: 1 renamed, 1 unreadable")


def test_a_damaged_run_is_one_result_and_does_not_stop_the_others(micro):
    run = run_attempt(micro, steps=10).run
    (run.directory / "attempts.jsonl").write_text('{"event": "start"}\n' * 2)
    result = sync.sync_run(run)
    assert not result.synced
    assert str(run.directory / "attempts.jsonl") in result.problem


@pytest.mark.slow
def test_an_upload_in_progress_and_an_unwritable_run_are_one_line(server, micro, monkeypatch):
    monkeypatch.setattr(mirror, "FINISH_TIMEOUT_S", 0.5)
    run = run_attempt(micro, steps=10).run
    (run.directory / "wandb").mkdir()
    with FileLock(run.directory / "wandb" / f"{run.id}.lock"):
        problem = sync.sync_run(run).problem
    assert problem == "another process is still uploading it; sync it again when that has ended"
    shutil.rmtree(run.directory / "wandb")
    (run.directory / "wandb").touch()  # like a file system that refuses to be written, which root does not meet
    assert sync.sync_run(run).problem == f"{run.directory / 'wandb'}: File exists"
    assert not server.runs
