"""Metrics that have changed since they were written are noticed, named, and computed again where possible."""

import json
import re
import shutil

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import change_manifest, run_attempt

from gptlab.checkpoints.manifest import CHECKPOINTS, MANIFEST, MODEL, OPTIMIZER, checkpoint_directory, list_checkpoints
from gptlab.commands import list_runs
from gptlab.errors import GptlabError
from gptlab.tracking.history import ATTEMPTS
from gptlab.tracking.metrics import DETERMINISTIC, METRICS, read_metrics
from gptlab.tracking.run import RECORD, load_run


@pytest.fixture
def run(long_run, tmp_path):
    """A copy of the long run of 40 steps, with resumable checkpoints at 30 and 40."""
    shutil.copytree(long_run.directory, tmp_path / "runs" / long_run.id)
    return load_run(tmp_path / "runs" / long_run.id)


@pytest.fixture(scope="module")
def longer(micro, cache, tmp_path_factory):
    """The same run with 45 steps, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(tmp_path_factory.mktemp("longer")))
        patch.setenv("GPTLAB_CACHE", str(cache))
        return run_attempt(micro, steps=45).run


def edit(path, change):
    path.write_text(change(path.read_text()))


def killed(run):
    """Remove the end of the last attempt, as if the process had been killed."""
    edit(run.directory / ATTEMPTS, lambda text: text[: text.rstrip("\n").rindex("\n") + 1])


def change_loss(run, step):
    """Change a digit of the training loss of one row."""
    edit(
        run.directory / METRICS, lambda text: re.sub(rf'("step": {step},.*?"train/loss": \d+\.)\d\d', r"\g<1>99", text)
    )


def numbers(run):
    return [{key: row.get(key) for key in DETERMINISTIC} for row in read_metrics(run.directory)]


def assert_equal_runs(run, other, step=45):
    assert numbers(run) == numbers(other)
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (checkpoint_directory(r.directory, step) / name for r in (run, other))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_metrics_of_a_complete_run_are_verified(run):
    facts = list_runs.summarize(run).facts
    assert (facts.get("damage"), facts["val_loss"]) == (None, read_metrics(run.directory)[-1]["val/loss"])
    with (run.directory / METRICS).open("a") as file:
        file.write('{"step": 45, "train')  # as a crash leaves it
    assert run.history().damage is None


def drop_last_row(text):
    return text[: text.rstrip("\n").rindex("\n") + 1]


DAMAGE = {
    "cut at a row": drop_last_row,
    "cut in a row": lambda text: text[:-20],
    "a changed digit": lambda text: re.sub(r'("val/loss": \d+\.)\d\d', r"\g<1>99", text, count=1),
    "an added row": lambda text: text + '{"step": 41, "val/loss": 1.2252}\n',
    "a repeated row": lambda text: text + text.splitlines(keepends=True)[-1],
    "empty": lambda text: "",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_metrics_are_named_and_none_of_their_losses_is_shown(run, damage, caplog, capfd, train, micro):
    edit(run.directory / METRICS, DAMAGE[damage])
    (summary,) = list_runs.list_runs()
    assert str(run.directory / METRICS) in summary.facts["damage"]
    assert (summary.facts["val_loss"], summary.losses) == (None, [])
    assert summary.facts["damage"] in caplog.text
    list_runs.render([summary])
    assert "damaged" in capfd.readouterr().out
    result = train(micro)
    assert result.document()["val_loss"] is None
    assert "its losses are not shown; measure the final one again with: " in capfd.readouterr().err


@given(data=st.data())
def test_any_changed_character_of_verified_metrics_is_detected(run, data):
    path = run.directory / METRICS
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytes([data.draw(st.integers(0, 255))])
    assume(changed != content[at : at + 1])
    path.write_bytes(content[:at] + changed + content[at + 1 :])
    try:
        assert str(path) in run.history().damage
    finally:
        path.write_bytes(content)


def test_rows_after_the_newest_checkpoint_of_a_killed_run_are_unverified_and_not_damaged(run):
    killed(run)
    assert run.history().damage is None
    edit(run.directory / METRICS, lambda text: text + '{"step": 45, "train/loss": 5.0}\n')
    assert (run.history().damage, run.history().last("train/loss")) == (None, 5.0)
    change_loss(run, 35)
    assert "its rows have changed" in run.history().damage


def test_metrics_of_an_earlier_version_are_shown_unverified(run):
    strip = re.compile(r', "metrics_(bytes|xxh3|damaged_to)": [^,}]+|, "digest": "\w+"')
    edit(run.directory / ATTEMPTS, lambda text: strip.sub("", text))
    change_loss(run, 40)
    facts = list_runs.summarize(run).facts
    assert "damage" not in facts
    assert facts["val_loss"] is not None


def test_a_changed_step_at_the_end_of_an_attempt_is_noticed(run, caplog):
    edit(run.directory / ATTEMPTS, lambda text: text.replace('"step": 40', '"step": 90'))
    assert "does not end at step 90, as recorded" in run.history().damage
    assert f"{run.directory / ATTEMPTS} has changed since it was written" in caplog.text


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_missing_row_of_attempts_is_noticed_unless_it_is_the_last_end(run, train, micro, removed, caplog):
    train(micro, steps=45)
    assert len(run.history().attempts) == 4
    assert not caplog.records
    path = run.directory / ATTEMPTS
    edit(path, lambda text: "".join(line for n, line in enumerate(text.splitlines(True)) if n != removed))
    run.history()
    assert (f"{path} has changed since it was written" in caplog.text) == (removed != 1)


@pytest.mark.parametrize("kept", [0, 1])
def test_attempts_that_are_lost_at_the_end_of_the_file_are_noticed(run, train, micro, kept, caplog):
    train(micro, steps=45)
    path = run.directory / ATTEMPTS
    edit(path, lambda text: "".join(text.splitlines(True)[:kept]))
    assert run.history().status == "interrupted"
    assert run.history().step == 45
    assert f"{path} has changed since it was written" in caplog.text


def test_a_changed_record_is_reported_once(run, caplog):
    edit(run.directory / RECORD, lambda text: text.replace('"eval_every": 10', '"eval_every": 20'))
    assert load_run(run.directory).record.altered
    load_run(run.directory)
    assert caplog.text.count(f"{run.directory / RECORD} has changed since it was written") == 1


def test_a_run_resumes_from_the_checkpoint_before_changed_rows_and_heals(run, longer, train, micro, capfd):
    change_loss(run, 35)
    train(micro, steps=45)
    assert (
        "its rows have changed since they were written; resuming from the checkpoint of step 30"
        in capfd.readouterr().err
    )
    assert_equal_runs(run, longer)
    assert run.history().damage is None


def test_a_run_without_intact_rows_goes_on_and_stays_marked_as_damaged(run, longer, train, micro, capfd):
    change_loss(run, 5)
    train(micro, steps=45)
    assert "no checkpoint has intact rows, so training continues from step 40" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(run.directory)] == [
        row["step"] for row in read_metrics(longer.directory)
    ]
    assert "rows up to step 40 are not reliable" in run.history().damage
    train(micro, steps=50)
    assert "rows up to step 40 are not reliable" in run.history().damage


@pytest.mark.parametrize("change", [-400, 1, 10**6, -(10**6)])
@pytest.mark.parametrize("sealed", [True, False], ids=["with digest", "flat"])
def test_a_wrong_length_in_a_manifest_does_not_change_the_rows(run, longer, train, micro, change, sealed):
    path = checkpoint_directory(run.directory, 40) / MANIFEST
    document = json.loads(path.read_text())
    progress = document["content"]["progress"]
    progress["metrics_bytes"] = max(progress["metrics_bytes"] + change, 0)
    if not sealed:
        progress["metrics_xxh3"] = None
    path.write_text(json.dumps(document if sealed else document["content"]))
    train(micro, steps=45)
    assert_equal_runs(run, longer)


@pytest.mark.parametrize(
    "field", ["loss_sum", "clipped", "grad_norm_sum", "steps_since_row", "elapsed_s", "best_val_loss"]
)
def test_a_changed_number_in_a_manifest_does_not_change_the_rows(long_run, train, micro, signal_at_step, field, capfd):
    run = train(micro, hooks=signal_at_step(13)).run
    path = checkpoint_directory(run.directory, 13) / MANIFEST
    document = json.loads(path.read_text())
    document["content"]["progress"][field] += 1
    path.write_text(json.dumps(document))
    train(micro)
    assert f"{path} is damaged: its digest does not match its content" in capfd.readouterr().err
    assert numbers(run) == numbers(long_run)


def test_a_run_whose_checkpoints_were_deleted_is_not_started_again(run, train, micro):
    before = (run.directory / METRICS).read_bytes()
    shutil.rmtree(run.directory / CHECKPOINTS)
    refusal = r"no checkpoint to resume from, but it was trained to step 40; restore .*/checkpoints from a copy"
    with pytest.raises(GptlabError, match=refusal):
        train(micro, steps=45)
    killed(run)
    with pytest.raises(GptlabError, match=refusal):  # only the rows show that there was a checkpoint
        train(micro, steps=45)
    assert (run.directory / METRICS).read_bytes() == before
    (run.directory / CHECKPOINTS).mkdir()
    with pytest.raises(GptlabError, match=r"no checkpoint to resume from"):
        train(micro, steps=45)


def test_a_run_that_once_resumed_is_not_started_again_without_checkpoints(run, train, micro):
    killed(run)
    edit(
        run.directory / ATTEMPTS, lambda text: text + '{"attempt": 2, "event": "start", "from_step": 30, "steps": 40}\n'
    )
    shutil.rmtree(run.directory / CHECKPOINTS)
    (run.directory / METRICS).unlink()
    with pytest.raises(GptlabError, match=r"no checkpoint to resume from, but it was trained to step 30"):
        train(micro, steps=45)


@pytest.mark.parametrize("newest_row", [5, 10, 20])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(run, longer, train, micro, newest_row):
    """The save of the checkpoint at step 10 may be unfinished until step 20."""
    killed(run)
    for checkpoint in list_checkpoints(run.directory):
        shutil.rmtree(checkpoint.directory)
    edit(run.directory / METRICS, lambda text: "".join(text.splitlines(keepends=True)[: newest_row // 5 + 1]))
    train(micro, steps=45)
    assert_equal_runs(run, longer)


def test_a_checkpoint_of_an_abandoned_attempt_vouches_for_nothing(run, train, micro, signal_at_step):
    """An attempt that resumed from step 30 has other rows than the checkpoint at 40 says, until it gets there."""
    (checkpoint_directory(run.directory, 40) / OPTIMIZER).write_bytes(b"")
    train(micro, steps=45, hooks=signal_at_step(33))
    killed(run)
    shutil.rmtree(checkpoint_directory(run.directory, 33))
    assert [c.step for c in list_checkpoints(run.directory) if c.resumable] == [30, 40]
    assert run.history().damage is None


def test_a_manifest_that_is_sealed_again_is_believed(run):
    change_manifest(checkpoint_directory(run.directory, 40) / MANIFEST, lambda content: content.update(threads=77))
    assert [c.manifest.threads for c in list_checkpoints(run.directory)][-1] == 77
