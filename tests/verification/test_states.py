"""Runs in every state: extended, killed, diverged, reduced, without its parent, of an earlier version, from a GPU."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import change_manifest, run_attempt, typed

from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.checkpoints.retention import remove_optimizer_state
from gptlab.commands.run import Options, run_experiment
from gptlab.digests import with_digest
from gptlab.errors import BadInputError, DivergedError, GptlabError
from gptlab.identity import identify
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import Run, all_runs, load_run
from gptlab.tracking.verifications import VERIFICATIONS, current_verification
from gptlab.training.initial import find_branch
from gptlab.verification import replay
from gptlab.verification.conditions import Attempts
from gptlab.verification.result import Verification
from gptlab.verification.stretch import choose_stretch
from gptlab.verification.verify import verify_run


def verified(run: Run, first: int | None = None, last: int | None = None) -> Verification:
    return verify_run(load_run(run.directory), first=first, last=last, console=Console(stderr=True))


def change_attempts(run: Run, change: Callable[[dict[str, Any]], object], *, digest: bool = True) -> None:
    """Change each row of the attempts, with or without a new digest."""
    path = run.directory / "attempts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["digest"]
        change(row)
    path.write_text("".join(json.dumps(with_digest(row) if digest else row) + "\n" for row in rows))


def test_a_run_that_was_extended_between_two_rows_is_bitwise(micro: Experiment):
    for steps in (7, 13, 21):
        run = run_attempt(micro, steps=steps).run
    found = verified(run)
    assert (found.verdict, found.last, found.checkpoints, found.rows) == ("bitwise", 21, (20, 21), 6)
    found = verified(run, first=20)
    assert (found.verdict, found.rows, found.checkpoints) == ("bitwise", 1, (21,))


def test_rows_that_a_killed_run_wrote_after_its_last_checkpoint_are_replayed(copied: Run):
    path = copied.directory / "attempts.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(copied.directory / "checkpoints" / "step-00000040")
    found = verified(copied, first=30)
    assert (found.verdict, found.last, found.rows) == ("bitwise", 40, 2)
    assert any("from step 35 on" in note for note in found.notes)


def test_a_divergence_must_happen_again(micro: Experiment):
    hot = micro.with_changes({"train.learning_rate": 1e30, "train.grad_clip": 1e30})
    with pytest.raises(DivergedError):
        run_attempt(hot)
    (run,) = all_runs()
    found = verified(run)
    assert (found.verdict, found.last) == ("bitwise", 1)
    assert any("and so did the replay" in note for note in found.notes)
    change_attempts(run, lambda row: row.get("diverged", {}).update(after_step=2))
    found = verified(run)
    assert found.verdict == "differs"
    assert "the run diverged after step 2, and the replay after step 1" in found.notes


def test_weights_without_optimizer_state_are_compared(copied: Run):
    remove_optimizer_state(list_checkpoints(copied.directory)[-1])
    found = verified(copied, first=30)
    assert (found.verdict, found.checkpoints) == ("bitwise", (40,))
    with pytest.raises(BadInputError, match="keeps no resumable checkpoint of step 40; available: 30"):
        verified(copied, first=40)


def test_a_missing_parent_is_named_and_the_runs_own_checkpoints_do(copied: Run, micro: Experiment):
    low = micro.with_changes({"train.learning_rate": 1e-3, "train.steps": 60, "train.keep_steps": [50]})
    branch = find_branch(f"{copied.id}@30", low)
    run = run_experiment(low, 0, Options(wandb="off"), Console(stderr=True), branch).run
    found = verified(run)
    assert (found.verdict, found.first, found.last) == ("bitwise", 30, 60)
    shutil.move(copied.directory, copied.directory.parents[1] / "elsewhere")
    with pytest.raises(BadInputError, match=f"starts from {copied.id} at step 30; restore it, or .*: --from 50"):
        verified(run)
    assert verified(run, first=50).verdict == "bitwise"


def test_a_run_in_training_is_refused(copied: Run):
    with RunLock(copied.directory), pytest.raises(GptlabError, match="is being trained by process"):
        verified(copied)


def test_a_run_of_an_earlier_version_verifies(copied: Run):
    document = json.loads((copied.directory / "run.json").read_text())
    for key in ("digest", "fingerprint", "size"):
        del document[key]
    record = copied.record
    identity = identify(
        record.spec,
        precision=record.precision,
        text_sha256=record.text.sha256,
        tokenizer_sha256=record.tokenizer_sha256,
    )
    run_id = identity.run_id(record.seed)
    document |= {"run": run_id, "identity": identity.content, "wandb_id": f"{run_id}-{'0' * 8}"}
    (copied.directory / "run.json").write_text(json.dumps(document))
    old = ("event", "steps", "time", "step", "status", "threads", "device", "torch")
    change_attempts(copied, lambda row: [row.pop(key) for key in [*row] if key not in old], digest=False)
    for checkpoint in list_checkpoints(copied.directory):
        path = checkpoint.directory / "manifest.json"
        change_manifest(path, lambda manifest: (manifest.pop("attempt"), manifest["progress"].pop("metrics_xxh3")))
    directory = copied.directory.rename(copied.directory.with_name(run_id))
    found = verified(load_run(directory))
    assert (found.verdict, found.damage, found.rows) == ("bitwise", (), 9)
    assert found.other_headers == (30, 40), "the header has the identity, which has a fingerprint now"
    assert any("no checksum covers metrics.jsonl" in note for note in found.notes)
    assert "did not record" in found.code[0]


def test_a_run_of_a_gpu_is_replayed_on_the_cpu_where_there_is_none(copied: Run):
    change_attempts(copied, lambda row: row.update(device="NVIDIA H100") if row["event"] == "start" else None)
    found = verified(copied, last=5)
    assert found.environment["device"] == ("NVIDIA H100", "cpu")
    assert found.conditions == "cpu, float32, 1 thread"


def test_an_interrupted_verification_leaves_nothing(
    copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def interrupt(self: object, step: int, loss: float | None) -> None:
        if step == 5:
            raise KeyboardInterrupt

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(replay.StepProgress, "update", interrupt)
    before = sorted(copied.directory.rglob("*"))
    assert "interrupted" in typed(monkeypatch, capfd)("verify", copied.id, code=130)
    assert not any((tmp_path / "temporary").iterdir())
    assert sorted(copied.directory.rglob("*")) == before


def test_too_little_space_names_the_directory_for_temporary_files(
    copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(GptlabError, match=f"the replay needs 170 KiB, but {tmp_path} has 0 KiB free; .* set TMPDIR"):
        verified(copied)


def test_a_result_that_cannot_be_stored_is_printed(
    copied: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    gptlab = typed(monkeypatch, capfd)
    (copied.directory / VERIFICATIONS).mkdir()
    out = gptlab("verify", copied.id, "--to", "5")
    assert "bitwise, steps 0 to 5" in out
    assert "note: the result is not stored: " in out
    assert copied.id in gptlab("runs")


def test_a_stored_result_that_has_changed_is_not_shown(
    copied: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    gptlab = typed(monkeypatch, capfd)
    gptlab("verify", copied.id, "--to", "5")
    assert current_verification(copied.directory)
    path = copied.directory / VERIFICATIONS
    path.write_text(path.read_text().replace('"last": 5', '"last": 40'))
    assert current_verification(copied.directory) is None
    assert "bitwise" not in gptlab("show", copied.id)


def test_each_step_has_the_threads_of_the_attempt_that_computed_it(copied: Run):
    start = {**copied.history().starts[0], "from_step": 0, "threads": 1}
    later: list[Any] = [{**start, "from_step": 20, "threads": 2}, {**start, "from_step": 10, "threads": 3}]
    attempts = Attempts((start, *later), choose_stretch(copied, copied.history(), None, 30))
    assert [attempts.threads_at(step) for step in (0, 9, 10, 29)] == [1, 1, 3, 3], "the last one began at step 10"
    assert [start["threads"] for start in attempts.involved()] == [1, 3]
    many: Any = {**start, "threads": 10**9}
    assert Attempts((many,), attempts.stretch).threads_at(0) == 1, "what a stranger's run says is not tried"
