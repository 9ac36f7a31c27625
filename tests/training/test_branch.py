"""Branches: runs that continue from another run's weights and optimizer state with a changed spec."""

import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from support import change_manifest, run_attempt

from gptlab.checkpoints.manifest import MANIFEST, MODEL, OPTIMIZER, checkpoint_directory, list_checkpoints
from gptlab.checkpoints.retention import check_space
from gptlab.commands import list_runs, show
from gptlab.commands.diff import compare, recorded_side
from gptlab.commands.run import Options, resume_run
from gptlab.data.windows import Windows
from gptlab.errors import BadInputError, GptlabError
from gptlab.mirror import wandb_run
from gptlab.size import size_in_closed_form
from gptlab.terminal.console import Console
from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.records import Branch, RunRecord
from gptlab.tracking.run import Run, find_run
from gptlab.training.initial import find_branch, find_initial_weights
from gptlab.training.loop import Hooks
from gptlab.training.run_text import stored_text
from gptlab.training.training_data import load_training_data


def tensors(run: Run, step: int) -> dict[str, torch.Tensor]:
    """The weights and the optimizer state of a checkpoint."""
    folder = checkpoint_directory(run.directory, step)
    return {f"{name}:{key}": value for name in (MODEL, OPTIMIZER) for key, value in load_file(folder / name).items()}


def assert_equal_tensors(one: Run, other: Run, step: int) -> None:
    ours, theirs = tensors(one, step), tensors(other, step)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def trained(micro, cache, tmp_path_factory) -> Run:
    """Ten steps, in a runs directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(tmp_path_factory.mktemp("trunk")))
        patch.setenv("GPTLAB_CACHE", str(cache))
        return run_attempt(micro, steps=10).run


@pytest.fixture
def parent(trained, tmp_path) -> Run:
    """The same in the runs directory of the test."""
    shutil.copytree(trained.directory, tmp_path / "runs" / trained.id)
    return find_run(trained.id)


@pytest.fixture
def branch(train, micro):
    """`branch(reference, changes, **options)` trains a branch named `cooldown`."""

    def start(reference: str, changes: dict | None = None, experiment=micro, **options):
        child = experiment.vary("cooldown", why="Does it continue?", **{"train.steps": 20, **(changes or {})})
        point = find_branch(reference, child)
        return train(child, initial_weights=point, seed=options.pop("seed", point.seed), **options).run

    return start


@pytest.mark.parametrize(("step", "dropout"), [(10, 0.0), (13, 0.0), (10, 0.3)])
def test_a_branch_that_changes_nothing_ends_with_the_parents_tensors(train, micro, branch, step, dropout):
    spec = micro.with_changes({"train.keep_steps": [step], "train.steps": 20, "model.dropout": dropout})
    parent = train(spec, seed=3).run
    child = branch(f"{parent.id}@{step}", experiment=spec)
    assert (child.record.seed, child.id != parent.id) == (3, True)
    assert_equal_tensors(parent, child, 20)
    theirs = {row["step"]: row for row in read_metrics(parent.directory)}
    ours = {row["step"]: row for row in read_metrics(child.directory)}
    assert list(ours) == sorted({step, 15, 20})
    for at in [step, 15, 20] if step == 10 else [20]:
        same = [c for c in DETERMINISTIC if not (at == step and c.startswith(("train/", "optim/")))]
        assert {c: ours[at].get(c) for c in same} == {c: theirs[at].get(c) for c in same}


@pytest.mark.parametrize(("trunk", "schedule"), [("constant", "wsd"), ("linear", "linear"), ("cosine", "cosine")])
def test_a_trunk_and_its_branch_end_like_one_run_with_the_branchs_schedule(train, micro, branch, trunk, schedule):
    decay = {"train.schedule": schedule, "train.horizon": 20, "train.steps": 20}
    decay |= {"train.decay_steps": 8} if schedule == "wsd" else {}
    whole = train(micro.with_changes(decay)).run
    before = {} if trunk == "constant" else decay
    parent = train(micro.vary("trunk", why="?", **{**before, "train.keep_steps": [12], "train.steps": 13})).run
    child = branch(f"{parent.id}@12", decay)
    assert_equal_tensors(whole, child, 20)
    with pytest.raises(AssertionError):
        assert_equal_tensors(whole, branch(f"{parent.id}@12", {"train.learning_rate": 0.02, **decay}), 20)


def test_tokens_epochs_and_seconds_of_a_branch_include_its_parents(train, micro, parent, branch):
    child = branch(f"{parent.id}@10", {"train.batch_size": 6})
    rows = read_metrics(child.directory)
    last = read_metrics(parent.directory)[-1]
    assert [row["tokens"] for row in rows] == [10 * 2 * 16 + steps * 6 * 16 for steps in (0, 5, 10)]
    assert rows[0]["epoch"] == last["epoch"]
    assert rows[-1]["epoch"] == pytest.approx(last["epoch"] * (20 + 60) / 20)
    assert rows[0]["elapsed_s"] >= list_checkpoints(parent.directory)[-1].manifest.progress.elapsed_s > 0
    assert rows[0]["cpu_s"] > 0
    grandchild = branch(f"{child.id}@20", {"train.steps": 22, "train.batch_size": 1})
    assert read_metrics(grandchild.directory)[-1]["tokens"] == rows[-1]["tokens"] + 2 * 16
    flops = 3 * micro.model.forward_flops_per_token(16)
    assert grandchild.record.flops_at(22) == flops * (rows[-1]["tokens"] + 2 * 16)


def test_a_branch_with_another_batch_size_neither_skips_nor_repeats_a_window(train, micro, parent, branch):
    child = branch(f"{parent.id}@10", {"train.batch_size": 5})
    theirs, ours = (
        load_training_data(r.record.spec, stored_text(r), 0, window_offset=r.record.window_offset)
        for r in (parent, child)
    )
    drawn = [start for step in range(10) for start in theirs.windows.starts(step)]
    drawn += [start for step in range(10, 14) for start in ours.windows.starts(step)]
    whole = Windows(theirs.windows.tokens, 16, 1, 0)
    assert drawn == [int(whole.starts(number)[0]) for number in range(40)]


def test_a_branch_on_another_text_begins_with_its_first_window(train, micro, parent, branch, tmp_path, text_file):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().upper())
    child = branch(f"{parent.id}@10", {"data.text": str(other)})
    rows = read_metrics(child.directory)
    assert (rows[0]["epoch"], rows[0]["tokens"]) == (0, 320)
    assert child.record.window_offset + 10 * 2 == 0


@pytest.mark.parametrize(("kill_at", "point"), [(14, 13), (22, 13)])
def test_a_branch_that_is_killed_or_extended_ends_like_an_undisturbed_one(train, micro, branch, kill_at, point):
    spec = micro.with_changes({"train.keep_steps": [point], "train.checkpoint_every": 7})
    parent = train(spec, steps=20).run
    rate = {"train.learning_rate": 1e-3, "train.steps": 30}
    undisturbed = branch(f"{parent.id}@{point}", rate, experiment=spec)
    shutil.move(undisturbed.directory, undisturbed.directory.with_name("undisturbed"))
    undisturbed = find_run("undisturbed")

    def die(step: int, loss: float | None) -> None:
        if step == kill_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        branch(f"{parent.id}@{point}", rate, experiment=spec, hooks=Hooks(on_step=[die]))
    branch(f"{parent.id}@{point}", {**rate, "train.steps": 25}, experiment=spec)
    child = resume_run(find_run(undisturbed.id), Options(steps=30, wandb="off"), Console(stderr=True)).run
    assert_equal_tensors(undisturbed, child, 30)
    ours, theirs = (read_metrics(run.directory) for run in (child, undisturbed))
    assert [[row.get(c) for c in DETERMINISTIC] for row in ours] == [[r.get(c) for c in DETERMINISTIC] for r in theirs]
    assert ours[0]["step"] == point
    assert child.history().damage is None


def test_a_branch_needs_its_parent_only_until_its_first_checkpoint(train, micro, parent, branch, capfd):
    child = branch(f"{parent.id}@10", {"train.steps": 15})
    parent.move_to_trash()
    resume_run(child, Options(steps=20, wandb="off"), Console(stderr=True))
    assert child.history().step == 20
    shutil.rmtree(child.directory / "checkpoints")
    for name in ("attempts.jsonl", "metrics.jsonl"):
        (child.directory / name).unlink()
    with pytest.raises(BadInputError, match=f"is missing; the run starts from {parent.id} at step 10"):
        resume_run(child, Options(steps=20, wandb="off"), Console(stderr=True))


def test_fresh_starts_a_branch_and_a_parent_again(train, micro, parent, branch, capfd):
    child = branch(f"{parent.id}@10")
    again = branch(f"{parent.id}@10", fresh=True)
    assert_equal_tensors(child if child.directory != again.directory else again, again, 20)
    assert len(again.history().starts) == 1
    capfd.readouterr()
    train(micro, steps=10, fresh=True)
    assert f"{child.id} (from step 10) started from the old run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.n_embd": 16}, "model.n_embd is 16, not 8"),
        ({"model.n_head": 1, "model.tied": True}, "model.n_head is 1, not 2, model.tied is True, not False"),
        ({"train.steps": 10}, "10 steps end before the branch begins.*--steps 20"),
        ({"train.steps": 4}, "4 steps end before the branch begins"),
        ({"train.schedule": "cosine", "train.horizon": 10}, "train.horizon 10 ends before the branch begins"),
    ],
)
def test_a_branch_that_cannot_continue_is_refused_before_anything_is_written(
    train, micro, parent, branch, tmp_path, changes, named
):
    with pytest.raises(BadInputError, match=named):
        branch(f"{parent.id}@10", changes)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [parent.id]


def test_a_branch_may_change_dropout_data_and_rates(train, micro, parent, branch):
    changes = {"model.dropout": 0.1, "train.betas": (0.8, 0.9), "train.weight_decay": 0.0, "data.val_fraction": 0.2}
    child = branch(parent.id, {**changes, "train.sequence_length": 8, "train.precision": "float32"})
    assert child.history().step == 20
    assert read_metrics(child.directory)[-1]["tokens"] == 320 + 10 * 2 * 8
    before = 3 * micro.model.forward_flops_per_token(16) * 320
    assert child.record.flops_at(20) == before + 3 * micro.model.forward_flops_per_token(8) * 160


def test_a_step_without_a_resumable_checkpoint_is_refused_with_those_that_there_are(train, micro, branch):
    parent = train(micro.with_changes({"train.snapshots": True}), steps=30).run
    for step in (16, 17):  # weights only, and none
        with pytest.raises(BadInputError, match=rf"no resumable checkpoint of step {step}; available: 20, 30; .*keep"):
            branch(f"{parent.id}@{step}")
    for reference in ("@5", f"{parent.id}@", f"{parent.id}@-1", f"{parent.id}@²", f"{parent.id}@{'9' * 99}"):
        with pytest.raises(BadInputError):
            branch(reference)
    newest = branch(parent.id, {"train.steps": 35})
    assert newest.record.branch is not None
    assert newest.record.branch.step == 30


def test_a_contradicting_seed_is_refused(train, micro, branch):
    parent = train(micro, seed=3, steps=10).run
    with pytest.raises(BadInputError, match="--seed 4 contradicts --branch: micro-.*-s3 has seed 3"):
        branch(parent.id, seed=4)


def test_a_changed_parent_is_not_continued_from(train, micro, parent, branch):
    for name in (MODEL, OPTIMIZER):
        path = checkpoint_directory(parent.directory, 10) / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BadInputError, match=f"{name} is damaged.*choose another step"):
            branch(parent.id)
        path.write_bytes(content)


def test_the_identity_and_the_record_name_the_parent(train, micro, parent, branch):
    child = branch(f"{parent.id}@10")
    files = {
        name: hashlib.sha256((checkpoint_directory(parent.directory, 10) / name).read_bytes())
        for name in (MODEL, OPTIMIZER)
    }
    assert child.record.identity["branch"] == {
        "run": parent.id,
        "step": 10,
        "model_sha256": files[MODEL].hexdigest(),
        "optimizer_sha256": files[OPTIMIZER].hexdigest(),
    }
    document = json.loads((child.directory / "run.json").read_text())
    del document["digest"]
    for field, value in {"step": 5, "sha256": "0" * 64, "optimizer_sha256": "0" * 64, "run": "x", "seed": 7}.items():
        with pytest.raises(ValidationError):
            RunRecord.model_validate({**document, "branch": {**document["branch"], field: value}})
    for field, value in {"windows": 2**80, "sequence_length": 0, "elapsed_s": -1, "flops": "nan", "path": "x"}.items():
        with pytest.raises(ValidationError):
            Branch.model_validate({**document["branch"], field: value})
    old = json.loads((parent.directory / "run.json").read_text())
    del old["digest"], old["branch"]
    assert RunRecord.model_validate(old).branch is None


def test_checkpoints_that_children_need_are_not_retired(train, micro, branch):
    parent = train(micro, steps=20).run
    branch(f"{parent.id}@10", {"train.steps": 12})
    warm = micro.vary("warm", why="Weights?", **{"train.steps": 2})
    train(warm, initial_weights=find_initial_weights(f"{parent.id}@20"))
    damaged = parent.directory.with_name("damaged")
    damaged.mkdir()
    (damaged / "run.json").write_bytes(b'{"branch": {"run": "' + parent.id.encode() + b'"')
    train(micro, steps=60)
    kept = {c.step: c.resumable for c in list_checkpoints(parent.directory)}
    assert kept == {10: True, 20: False, 50: True, 60: True} | {s: False for s in kept if s not in {10, 20, 50, 60}}
    assert kept.keys() - {10, 20, 50, 60} <= {parent.history().step, *range(30, 60, 10)}


def test_a_checkpoint_that_was_removed_meanwhile_starts_no_branch(train, micro, parent, tmp_path):
    child = micro.vary("cooldown", why="Too late?", **{"train.steps": 20})
    point = find_branch(f"{parent.id}@10", child)
    train(micro, steps=40)
    with pytest.raises(BadInputError, match="step-00000010 was removed in the meantime; choose another step"):
        train(child, initial_weights=point)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [parent.id]


def test_kept_steps_are_resumable_and_outlive_retention(train, micro):
    run = train(micro.with_changes({"train.keep_steps": [3, 10, 17]})).run
    kept = {c.step for c in list_checkpoints(run.directory) if c.resumable}
    assert kept == {3, 10, 17, 30, 40}


def test_kept_steps_count_in_the_space_that_checkpoints_need(micro, tmp_path, monkeypatch):
    free = 4 * 3 * 4 * micro.model.parameters  # room for four checkpoints
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    size = size_in_closed_form(micro)
    assert size is not None

    def check(keep_steps: list[int]) -> None:
        check_space(tmp_path, micro.with_changes({"train.keep_steps": keep_steps}).train, size)

    check([])
    check([100])  # after the last step
    with pytest.raises(GptlabError, match="the checkpoints need"):
        check([10, 11, 12])


def test_opening_lines_diff_show_and_the_list_name_parent_and_step(train, micro, parent, branch, capfd):
    child = branch(f"{parent.id}@10")
    opening = capfd.readouterr().err
    assert f"{child.id} branches off at step 10" in opening
    assert f"parent      {parent.id} at step 10 · weights and optimizer state" in opening
    compared = compare(recorded_side(parent), recorded_side(child)).document()
    assert compared["spec"]["branch"] == {"a": None, "b": f"{parent.id}@10"}
    facts = {"run": parent.id, "step": 10, "by": "branch"}
    assert show.describe(child.id).document()["parent"] == facts
    assert "parent" not in show.describe(parent.id).document()
    assert wandb_run.config(child, child.history().starts[0])["parent"] == facts
    assert "parent" not in wandb_run.config(parent, parent.history().starts[0])
    warm = train(micro.vary("a", why="?"), initial_weights=find_initial_weights(parent.id), steps=1).run
    summaries = list_runs.list_runs()
    assert {s.facts["run"]: s.facts.get("parent") for s in summaries} == {
        parent.id: None,
        child.id: facts,
        warm.id: {**facts, "by": "from"},
    }
    list_runs.render(summaries)
    lines = capfd.readouterr().out.splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == [
        parent.id,
        f"└ {warm.id} (from @10)",
        f"└ {child.id} (branch @10)",
    ]
    parent.move_to_trash()
    list_runs.render(list_runs.list_runs())
    assert f"{child.id} (branch {parent.id}@10)" in capfd.readouterr().out


def test_a_file_that_is_too_long_for_the_model_is_refused_before_it_is_read(parent, monkeypatch):
    path = checkpoint_directory(parent.directory, 10) / MODEL
    os.truncate(path, 1 << 36)
    change_manifest(path.with_name(MANIFEST), lambda manifest: manifest["files"][MODEL].update(bytes=1 << 36))
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: pytest.fail("the file is read"))
    for find in (find_initial_weights, lambda reference: find_branch(reference, parent.record.spec)):
        with pytest.raises(BadInputError, match="belongs to another model"):
            find(f"{parent.id}@10")
