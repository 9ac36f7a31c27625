import json
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from gptlab.checkpoints.manifest import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    LoopState,
    compute_digest,
    list_checkpoints,
    select_checkpoint,
)
from gptlab.checkpoints.retention import STAGING, TRASH, apply_retention, is_snapshot, remove_incomplete
from gptlab.checkpoints.write import commit_checkpoint
from gptlab.errors import BadInputError


def save_step(directory, step, *, resumable=True):
    files = {MODEL: {"weight": torch.arange(6.0).view(2, 3) + step}}
    if resumable:
        files[OPTIMIZER] = {"weight/step": torch.tensor(float(step))}
    manifest = {
        "run": "r",
        "step": step,
        "progress": LoopState(),
        "text_sha256": "t",
        "tokenizer_sha256": "k",
        "torch": torch.__version__,
        "threads": 1,
    }
    return commit_checkpoint(directory, files, {"run": "r", "step": step}, manifest)


def test_a_checkpoint_holds_what_was_saved(tmp_path):
    saved = save_step(tmp_path, 7)
    assert saved.directory == tmp_path / CHECKPOINTS / "step-00000007"
    assert list_checkpoints(tmp_path) == [saved]
    with safe_open(saved.directory / MODEL, "pt") as file:
        assert torch.equal(file.get_tensor("weight"), torch.arange(6.0).view(2, 3) + 7)
    assert {path.name for path in saved.directory.iterdir()} == {MODEL, OPTIMIZER, MANIFEST}
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000007"]


def test_the_header_is_one_sorted_json_document_readable_without_the_tensors(tmp_path):
    path = save_step(tmp_path, 7).directory / MODEL
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length))["__metadata__"]
    assert metadata == {"gptlab": '{"run":"r","step":7}'}


def test_the_same_state_gives_the_same_bytes(tmp_path):
    first, second = save_step(tmp_path / "a", 7), save_step(tmp_path / "b", 7)
    for name in (MODEL, OPTIMIZER, MANIFEST):
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()


def test_file_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_step(tmp_path, 1).directory / MODEL
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is flushed is read from /proc")
def test_files_reach_the_disk_in_the_order_metrics_tensors_manifest_directory_rename_parent(train, micro, monkeypatch):
    """This order decides what survives a power failure. Killing a process cannot reveal a missing fsync."""
    run = train(micro, steps=5).run
    order = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recorded_fsync(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(run.directory))
        order.append("fsync " + re.sub(r"\.[0-9a-f]{8}\.tmp$", ".*.tmp", path))
        fsync(descriptor)

    def recorded(do):
        def move(source, target, **options):
            if Path(target).is_relative_to(run.directory):  # not the cache
                order.append(f"rename to {Path(target).relative_to(run.directory)}")
            do(source, target, **options)

        return move

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded(rename))
    monkeypatch.setattr(os, "replace", recorded(replace))
    train(micro, steps=10)
    first = order.index("fsync metrics.jsonl")
    assert order[first : first + 8] == [
        "fsync metrics.jsonl",
        "fsync checkpoints/.saving/model.safetensors",
        "fsync checkpoints/.saving/optimizer.safetensors",
        "fsync checkpoints/.saving/.manifest.json.*.tmp",
        "rename to checkpoints/.saving/manifest.json",
        "fsync checkpoints/.saving",
        "rename to checkpoints/step-00000010",
        "fsync checkpoints",
    ]


def test_a_directory_without_a_manifest_is_not_a_checkpoint(tmp_path):
    save_step(tmp_path, 1)
    (save_step(tmp_path, 2).directory / MANIFEST).unlink()
    assert [c.step for c in list_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("snapshots", "best", "kept"),
    [
        (False, None, {30: True, 40: True}),
        (False, 10, {10: False, 30: True, 40: True}),
        (False, 40, {30: True, 40: True}),
        (True, 20, {1: False, 2: False, 20: False, 30: True, 40: True}),
    ],
)
def test_retention_keeps_the_newest_the_best_and_snapshots(tmp_path, snapshots, best, kept):
    for step in (1, 2, 10, 20, 30, 40):
        save_step(tmp_path, step, resumable=step > 1)
    apply_retention(tmp_path, 2, best, snapshots=snapshots)
    assert {c.step: c.resumable for c in list_checkpoints(tmp_path)} == kept
    for found in list_checkpoints(tmp_path):
        assert {name: compute_digest(found.directory / name) for name in found.manifest.files} == found.manifest.files
        assert (found.directory / OPTIMIZER).exists() == found.resumable


@settings(max_examples=settings.default.max_examples // 3)
@given(
    saves=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    keep=st.integers(2, 4),
    snapshots=st.booleans(),
)
def test_retention_keeps_what_it_must_after_any_sequence_of_saves(saves, keep, snapshots, tmp_path_factory):
    """`saves` holds (resumable, best so far) for each step from 1."""
    directory = tmp_path_factory.mktemp("retention")
    best, resumable = None, []
    for step, (is_resumable, is_best) in enumerate(saves, start=1):
        save_step(directory, step, resumable=is_resumable)
        best, resumable = step if is_best else best, [*resumable, step] if is_resumable else resumable
        apply_retention(directory, keep, best, snapshots=snapshots)
        kept = {c.step: c.resumable for c in list_checkpoints(directory)}
        assert [step for step in kept if kept[step]] == resumable[-keep:]
        assert best is None or best in kept
        if snapshots:
            assert {saved for saved in range(1, step + 1) if is_snapshot(saved)} <= kept.keys()
        assert kept.keys() <= {*resumable[-keep:], best, *(s for s in range(step + 1) if snapshots and is_snapshot(s))}


def test_retention_orders_by_step_and_not_by_time_and_leaves_other_runs_alone(tmp_path):
    for step in (30, 10, 20):
        save_step(tmp_path / "run", step)
        save_step(tmp_path / "other", step)
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [10, 20, 30]
    apply_retention(tmp_path / "run", 2, None, snapshots=False)
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [20, 30]
    assert [c.step for c in list_checkpoints(tmp_path / "other")] == [10, 20, 30]


def test_checkpoints_after_the_step_that_training_resumed_from_do_not_count(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save_step(tmp_path, step)
    apply_retention(tmp_path, 2, None, snapshots=False, up_to=30)
    assert [c.step for c in list_checkpoints(tmp_path)] == [20, 30, 40, 50]


def test_snapshots_are_taken_at_zero_and_powers_of_two():
    assert [step for step in range(40) if is_snapshot(step)] == [0, 1, 2, 4, 8, 16, 32]


def test_saving_a_step_again_replaces_it(tmp_path):
    save_step(tmp_path, 8, resumable=False)
    save_step(tmp_path, 8)
    assert [c.resumable for c in list_checkpoints(tmp_path)] == [True]


def test_incomplete_saves_of_a_crash_are_removed(tmp_path):
    save_step(tmp_path, 1)
    for name in (STAGING, TRASH):
        (tmp_path / CHECKPOINTS / name).mkdir()
    remove_incomplete(tmp_path)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000001"]


def test_selecting_a_missing_step_names_the_available_steps(tmp_path):
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    assert (select_checkpoint(tmp_path, None).step, select_checkpoint(tmp_path, 1).step) == (2, 1)
    with pytest.raises(BadInputError, match="no checkpoint of step 3; available: 1, 2"):
        select_checkpoint(tmp_path, 3)
    with pytest.raises(BadInputError, match="no checkpoint yet"):
        select_checkpoint(tmp_path / "elsewhere", None)
