"""`gptlab run` and `gptlab resume` on new and existing runs: what they print, record and refuse."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import gptlab
from gptlab import project
from gptlab.checkpoints.manifest import checkpoint_directory, list_checkpoints
from gptlab.commands.run import Options, resume_run
from gptlab.errors import BadInputError, DivergedError, GptlabError
from gptlab.model.gpt import build
from gptlab.terminal.console import Console
from gptlab.tracking import provenance
from gptlab.tracking.metrics import read_metrics
from gptlab.tracking.run import Run, find_run, load_run
from gptlab.training import initial, optimizer, plan
from gptlab.training.loop import Hooks


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in {"lock", "heartbeat"})
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_a_complete_run_is_reported_and_not_changed(train, micro, capfd):
    run = train(micro, steps=10).run
    before = contents(run.directory)
    result = train(micro, steps=10)
    assert result.exit_code == 0
    assert contents(run.directory) == before
    assert "is complete: 10 steps; nothing changed" in capfd.readouterr().err


def test_fewer_steps_than_done_change_nothing(train, micro, capfd):
    run = train(micro, steps=10).run
    before = contents(run.directory)
    train(micro, steps=5)
    assert contents(run.directory) == before
    assert "10 steps, more than the 5 requested" in capfd.readouterr().err


def test_fewer_steps_than_an_interrupted_run_has_change_nothing(train, micro, signal_at_step, capfd):
    run = train(micro, hooks=signal_at_step(12)).run
    before = contents(run.directory)
    train(micro, steps=5)
    assert contents(run.directory) == before
    assert "already has 12 steps" in capfd.readouterr().err


def test_the_closing_block_explains_its_uncertainty_and_names_the_best_step_of_the_run(train, micro, capfd):
    train(micro, steps=20)
    run = train(micro, steps=35).run
    printed = capfd.readouterr().err.rpartition("is complete")[2]
    loss, step = min((row["val/loss"], row["step"]) for row in read_metrics(run.directory) if "val/loss" in row)
    assert f"  best        {loss:.4f} nats/token at step {step}\n" in printed
    assert re.search(r"val loss    \d+\.\d{4} ± \d", printed)
    assert "± is how far it could differ on another part of the text" in printed


def test_run_json_is_never_changed(train, micro):
    run = train(micro, steps=5).run
    before = (run.directory / "run.json").read_bytes()
    train(micro, steps=10)
    assert (run.directory / "run.json").read_bytes() == before


def test_attempts_record_their_start_and_their_end(train, micro, signal_at_step):
    run = train(micro, tags=("a",), notes="first try", hooks=signal_at_step(12)).run
    train(micro)
    rows = run.history().attempts
    assert [(row["attempt"], row["event"]) for row in rows] == [(1, "start"), (1, "end"), (2, "start"), (2, "end")]
    assert [(row["from_step"], row["steps"]) for row in rows[::2]] == [(0, 40), (12, 40)]
    assert [(row["step"], row["status"]) for row in rows[1::2]] == [(12, "interrupted"), (40, "complete")]
    assert (rows[0]["tags"], rows[0]["notes"]) == (["a"], "first try")
    for key in ("host", "device", "torch", "threads", "python", "git_commit", "git_dirty", "diff_sha256", "packages"):
        assert key in rows[0]


def test_metrics_name_the_attempt_that_wrote_them(train, micro, signal_at_step):
    train(micro, hooks=signal_at_step(12))
    rows = read_metrics(train(micro).run.directory)
    assert [row["attempt"] for row in rows] == [1, 1, 1, 2, 2, 2, 2, 2, 2]


def test_the_best_and_the_last_checkpoints_are_kept(train, micro):
    run = train(micro).run
    assert [(c.step, c.resumable) for c in list_checkpoints(run.directory)] == [(30, True), (40, True)]


def test_snapshots_keep_the_early_weights(train, micro):
    run = train(micro.with_changes({"train.snapshots": True}), steps=10).run
    steps = {c.step: c.resumable for c in list_checkpoints(run.directory)}
    assert steps == {0: False, 1: False, 2: False, 4: False, 8: False, 10: True}
    drawn, kept = build(micro.model, seed=0).state_dict(), gptlab.load(run.id, 0)[0].state_dict()
    assert all(torch.equal(drawn[name], kept[name]) for name in drawn)


def test_a_sample_is_written_at_the_end_and_an_extension_adds_its_own(train, micro):
    run = train(micro, steps=10).run
    train(micro, steps=20)
    assert [(row["step"], row["prompt"]) for row in run.samples()] == [(10, "The"), (20, "The")]
    assert all(row["text"] for row in run.samples())


def test_a_sample_that_could_not_be_written_is_written_by_the_next_attempt(train, micro, monkeypatch):
    def fill(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "add_sample", fill)
        with pytest.raises(OSError, match="No space left"):
            train(micro, steps=10)
    assert find_run("micro").history().status == "failed"
    run = train(micro, steps=10).run
    assert run.history().status == "complete"
    assert [row["step"] for row in run.samples()] == [10]


def test_fresh_moves_the_old_run_to_the_trash(train, micro):
    old = train(micro, steps=5).run
    wandb_id = old.record.wandb_id
    new = train(micro, steps=5, fresh=True).run
    trashed = list((new.directory.parent / ".trash").iterdir())
    assert len(trashed) == 1
    assert json.loads((trashed[0] / "run.json").read_text())["wandb_id"] == wandb_id
    assert new.record.wandb_id != wandb_id
    assert len(new.history().attempts) == 2


def test_a_run_that_another_process_trains_is_refused(train, micro, signal_at_step):
    from gptlab.tracking.lock import RunLock

    run = train(micro, hooks=signal_at_step(12)).run
    with RunLock(run.directory):
        assert run.history().status == "running"
        with pytest.raises(GptlabError, match="is being trained by process"):
            train(micro)
    assert run.history().status == "interrupted"


def test_a_new_run_reports_which_fields_differ(train, micro, capfd):
    old = train(micro, steps=1).run
    capfd.readouterr()
    train(micro.with_changes({"train.learning_rate": 0.5}), steps=1)
    first_line = capfd.readouterr().err.splitlines()[0]
    assert first_line == f"new run; differs from {old.id}: train.learning_rate 0.01 → 0.5"


def test_another_text_starts_a_new_run_and_reports_why(train, micro, tmp_path, text_file, capfd):
    train(micro, steps=1)
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() * 2)
    train(micro.with_changes({"data.text": str(other)}), steps=1)
    assert "text_sha256" in capfd.readouterr().err.split("new run; ")[1].splitlines()[0]


def test_resume_uses_the_stored_spec_and_trains_to_the_target(train, micro, signal_at_step):
    run = train(micro, hooks=signal_at_step(12)).run
    result = resume_run(find_run(run.id), Options(wandb="off"), Console(stderr=True))
    assert (result.run.history().status, result.run.history().step) == ("complete", 40)
    resume_run(find_run(run.id), Options(wandb="off", steps=45), Console(stderr=True))
    assert run.history().step == 45


def test_resume_refuses_a_changed_text(train, micro, tmp_path, text_file):
    text = tmp_path / "mine.txt"
    shutil.copy(text_file, text)
    run = train(micro.with_changes({"data.text": str(text)}), steps=5).run
    before, whole = contents(run.directory), text.read_text()
    for changed, message in ((whole.upper(), run.record.text.sha256), (whole + "more", "bytes and now has 18,154")):
        text.write_text(changed)
        with pytest.raises(BadInputError, match=message):
            resume_run(run, Options(wandb="off", steps=9), Console(stderr=True))
    assert contents(run.directory) == before


def test_resume_refuses_another_tokenizer(train, gpt2_micro, monkeypatch):
    run = train(gpt2_micro, steps=5).run
    monkeypatch.setattr("gptlab.data.tokenizer.TOKENIZER_SHA256", "0" * 64)
    with pytest.raises(BadInputError, match="another tokenizer.*" + run.record.tokenizer_sha256):
        resume_run(run, Options(wandb="off", steps=9), Console(stderr=True))


def test_a_torn_last_row_is_dropped_and_reported(train, micro, signal_at_step, capfd):
    run = train(micro, hooks=signal_at_step(12)).run
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    assert train(micro).run.history().status == "complete"
    assert "the last row of metrics.jsonl was torn by a crash; 10 bytes are dropped" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(run.directory)] == list(range(0, 41, 5))


def test_a_clock_that_goes_backwards_changes_nothing(train, micro, long_run, monkeypatch):
    import itertools
    import time

    clock = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    run = train(micro).run
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (checkpoint_directory(r.directory, 40) / name for r in (run, long_run))
        assert ours.read_bytes() == theirs.read_bytes()
    assert [c.step for c in list_checkpoints(run.directory)] == [30, 40]


def test_a_non_finite_loss_ends_the_run_before_the_update(train, micro, monkeypatch):
    norm = optimizer.gradient_norm

    def explode(model):
        explode.steps += 1
        return torch.tensor(float("nan")) if explode.steps == 14 else norm(model)

    explode.steps = 0
    monkeypatch.setattr(optimizer, "gradient_norm", explode)
    with pytest.raises(DivergedError, match="gradient norm nan"):
        train(micro)
    run = find_run("micro")
    assert run.history().status == "diverged"
    end = run.history().attempts[-1]
    assert end["step"] == 13
    assert end["diverged"]["after_step"] == 13
    assert end["diverged"]["grad_norm"] == "nan"
    assert len(end["diverged"]["window_starts"]) == micro.train.batch_size
    assert [c.step for c in list_checkpoints(run.directory)] == [10]
    with pytest.raises(DivergedError, match="would diverge again"):
        train(micro)


def test_on_an_asynchronous_device_the_update_is_skipped_and_the_next_row_ends_the_run(train, micro, monkeypatch):
    """As on a GPU: the host does not wait for the loss, and fused AdamW skips the update by itself."""
    from dataclasses import replace

    real = plan.resolve_settings
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), asynchronous=True))
    norm, weights = optimizer.gradient_norm, []

    def explode(model):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if len(weights) == 13:
            for parameter in model.parameters():
                parameter.grad.fill_(torch.inf)
        return norm(model)

    monkeypatch.setattr(optimizer, "gradient_norm", explode)
    with pytest.raises(DivergedError, match="after step 12"):
        train(micro)
    before, after = weights[12:14]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], weights[11][name]) for name in before)
    run = find_run("micro")
    assert run.history().status == "diverged"
    assert run.history().attempts[-1]["diverged"]["after_step"] == 12
    assert [c.step for c in list_checkpoints(run.directory)] == [10]


def test_reading_losses_late_changes_no_number(train, micro, long_run, monkeypatch):
    from dataclasses import replace

    real = plan.resolve_settings
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), asynchronous=True))
    run = train(micro).run
    theirs, ours = read_metrics(long_run.directory), read_metrics(run.directory)
    for column in ("train/loss", "val/loss", "optim/grad_norm", "optim/clip_frac"):
        assert [row.get(column) for row in ours] == [row.get(column) for row in theirs]


def test_an_error_in_training_is_recorded_and_the_run_resumes_later(train, micro):
    def fail(step, loss):
        if step == 15:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(micro, hooks=Hooks(on_step=[fail]))
    assert find_run("micro").history().status == "failed"
    assert train(micro).run.history().status == "complete"


def test_a_full_disk_ends_the_attempt_and_the_run_resumes_later(train, micro, monkeypatch):
    import errno

    with monkeypatch.context() as patch:
        patch.setattr(
            "gptlab.checkpoints.write.write_tensors",
            lambda path, *rest: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device", str(path))),
        )
        with pytest.raises(OSError, match="No space left on device"):
            train(micro)
        assert find_run("micro").history().status == "failed"
    assert train(micro).run.history().status == "complete"


def test_text_too_short_for_a_window_writes_nothing(train, micro, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(BadInputError, match="sequence_length 16 needs"):
        train(micro.with_changes({"data.text": str(short)}))
    assert not (tmp_path / "runs").exists()


def test_console_output_is_written_to_the_runs_log(train, micro):
    log = (train(micro, steps=5).run.directory / "log.txt").read_text()
    assert "micro-" in log
    assert "step      5 · train loss" in log
    assert "is complete: 5 steps" in log


def test_changed_code_is_reported(train, micro, capfd, monkeypatch):
    before = contents(train(micro, steps=5).run.directory)
    monkeypatch.setattr("gptlab.tracking.provenance.working_tree", lambda: provenance.Source("0" * 40, b"a change\n"))
    run = train(micro, steps=5).run
    assert "the code has changed since then" in capfd.readouterr().err
    assert contents(run.directory) == before
    train(micro, steps=6)
    assert any(name.startswith("source-") for name in contents(run.directory).keys() - before.keys())
    assert "bitwise equal results are not guaranteed" in capfd.readouterr().err


def test_code_that_is_unknown_is_one_notice_at_each_start(train, micro, capfd, monkeypatch):
    unknown = provenance.Source(None, None, "git says: no")
    monkeypatch.setattr("gptlab.tracking.provenance.working_tree", lambda: unknown)
    for steps in (2, 4):
        run = train(micro, steps=steps).run
        assert capfd.readouterr().err.count("note: the code of this attempt is not recorded: git says: no") == 1
        assert run.history().starts[-1]["git_dirty"] is None
    assert (run.directory / "log.txt").read_text().count("git says: no") == 2
    train(micro, steps=4)
    assert "whether the code has changed since then is unknown: git says: no" in capfd.readouterr().err


def test_another_commit_of_the_same_code_is_not_a_change(project, train, micro, capfd):
    train(micro, steps=2)
    (project / "notes.md").write_text("Seen today.")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "notes"], check=True)
    run = train(micro, steps=2).run
    train(micro, steps=4)
    first, second = run.history().starts
    assert first["git_commit"] != second["git_commit"]
    assert "changed since" not in capfd.readouterr().err


def test_another_number_of_threads_is_reported_and_recorded(train, micro, capfd, monkeypatch):
    run = train(micro, steps=5).run
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    train(micro, steps=6)
    assert "changed since the last attempt: threads; bitwise equal results are not guaranteed" in capfd.readouterr().err
    assert [row["threads"] for row in run.history().attempts[::2]] == [1, 7]


def test_load_gives_the_trained_model_and_its_tokenizer(long_run: Run):
    model, tokenizer = gptlab.load(str(long_run.directory))
    tokens = torch.tensor([tokenizer.encode("the model learns to read")])
    assert not model.training
    assert model(tokens[:, :-1], tokens[:, 1:]).item() < 4
    assert gptlab.load(str(long_run.directory), step=30)[0].final_norm.weight.ne(model.final_norm.weight).any()
    assert checkpoint_directory(long_run.directory, 30).is_dir()


def test_a_warm_start_has_the_parents_weights_and_their_hash_in_its_identity(train, micro, long_run):
    parent = initial.find_initial_weights(f"{long_run.directory}@30")
    snapshots = micro.with_changes({"train.snapshots": True, "train.steps": 1})
    child = train(snapshots, initial_weights=parent).run
    assert child.id != long_run.id
    assert child.record.identity["initial_weights_sha256"] == parent.sha256
    for ours, theirs in zip(
        gptlab.load(child.id, 0)[0].parameters(), gptlab.load(str(long_run.directory), 30)[0].parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_warm_start_from_another_shape_or_a_missing_step_is_refused(train, micro, long_run, tmp_path):
    parent = initial.find_initial_weights(str(long_run.directory))
    wider = micro.with_changes({"model.n_embd": 16})
    with pytest.raises(BadInputError, match=r"belongs to another model: [0-9,]+ bytes for 15,[0-9,]+ parameters"):
        train(wider, initial_weights=parent)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(BadInputError, match="no checkpoint of step 7"):
        initial.find_initial_weights(f"{long_run.directory}@7")
    with pytest.raises(BadInputError, match="RUN@STEP"):
        initial.find_initial_weights(f"{long_run.directory}@last")


def test_a_warm_start_from_a_damaged_checkpoint_is_refused(train, micro):
    run = train(micro, steps=5).run
    path = checkpoint_directory(run.directory, 5) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="is damaged: its checksum .*; choose another step"):
        initial.find_initial_weights(f"{run.id}@5")


def test_a_run_that_ends_at_an_existing_checkpoint_is_still_validated(train, micro, signal_at_step):
    run = train(micro, hooks=signal_at_step(15)).run
    assert "val/loss" not in read_metrics(run.directory)[-1]
    train(micro, steps=15)
    last = read_metrics(run.directory)[-1]
    assert (run.history().status, last["step"]) == ("complete", 15)
    assert last["val/loss"] < read_metrics(run.directory)[2]["val/loss"]
    rows = read_metrics(train(micro).run.directory)
    assert [row["step"] for row in rows] == list(range(0, 41, 5))


def test_a_non_finite_validation_loss_ends_the_run(train, micro):
    wild = micro.with_changes({"train.learning_rate": 1e30, "train.eval_every": 1})
    with pytest.raises(DivergedError, match="validation loss is|the loss is"):
        train(wild)
    assert find_run("micro").history().status == "diverged"
    assert list_checkpoints(find_run("micro").directory) == []


def test_lost_metrics_are_reported_and_training_continues(train, micro, signal_at_step, capfd):
    run = train(micro, hooks=signal_at_step(12)).run
    (run.directory / "metrics.jsonl").unlink()
    assert train(micro).run.history().status == "complete"
    assert "metrics.jsonl has lost rows" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(run.directory)] == [15, 20, 25, 30, 35, 40]


def test_a_run_whose_prompt_does_not_fit_completes_without_a_sample(train, micro, capfd):
    run = train(micro.with_changes({"train.prompt": "the " * 20}), steps=5).run
    assert run.history().status == "complete"
    assert run.samples() == []
    assert "no sample: the prompt has" in capfd.readouterr().err


def test_a_complete_run_without_checkpoints_is_still_reported_as_complete(train, micro, capfd):
    run = train(micro, steps=5).run
    shutil.rmtree(run.directory / "checkpoints")
    train(micro, steps=5)
    assert "is complete: 5 steps" in capfd.readouterr().err


@pytest.mark.slow
def test_a_profile_is_written_on_request(train, micro):
    run = train(micro, steps=8, profile=True).run
    assert json.loads((run.directory / "profile" / "trace.json").read_text())["traceEvents"]
    assert "aten::" in (run.directory / "profile" / "operators.txt").read_text()
    train(micro, steps=10)
    assert [start["profile"] for start in run.history().starts] == [True, False]


@pytest.mark.slow
def test_too_few_steps_for_a_profile_are_reported(train, micro, capfd):
    run = train(micro, steps=2, profile=True).run
    assert not (run.directory / "profile").exists()
    assert "no profile was recorded: it takes 6 steps of one attempt" in capfd.readouterr().err


def test_log_every_is_fixed_when_a_run_begins(train, micro, capfd):
    train(micro, steps=10)
    run = train(micro.with_changes({"train.log_every": 1}), steps=20).run
    assert f"{run.id} keeps train.log_every=5 from its start" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(run.directory)] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("snapshots", [True, False])
def test_snapshots_are_fixed_when_a_run_begins_and_a_notice_says_how_to_change_that(train, micro, capfd, snapshots):
    begun, wanted = (micro.with_changes({"train.snapshots": value}) for value in (snapshots, not snapshots))
    first = train(begun, steps=2).run
    run = train(wanted, steps=2).run
    assert run.id == first.id, "the field is not part of the identity"
    notice = f"{run.id} keeps train.snapshots={snapshots} from its start; `gptlab run` with --fresh applies the new"
    assert notice in capfd.readouterr().err
    fresh = train(wanted, steps=2, fresh=True).run
    assert [c.step for c in list_checkpoints(fresh.directory)] == ([2] if snapshots else [0, 1, 2])


def test_a_copy_of_a_run_is_what_the_next_commands_use(micro, train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(micro, steps=1).run
    copy = load_run(shutil.copytree(run.directory, run.directory.with_name("backup")))
    resume_run(copy, Options(steps=2, wandb="off"), Console())
    output = capsys.readouterr().out
    assert "resume backup --steps 4" in output
    assert f"resume {run.id}" not in output
    assert (run.history().step, copy.history().step) == (1, 2)


def test_make_commands_work_in_any_folder_of_the_project(
    micro, train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project.root()
    monkeypatch.chdir(root / "docs")
    run = train(micro, steps=1).run
    resume_run(run, Options(steps=2, wandb="off"), Console())
    assert f"make -C {root} report" in capsys.readouterr().out
