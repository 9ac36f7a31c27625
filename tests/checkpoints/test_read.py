"""A damaged checkpoint is named and skipped; nothing of it reaches a model."""

import json
import math
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from strategies import as_json, damaged, oddly
from support import change_manifest

from gptlab.checkpoints.manifest import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    compute_digest,
    list_checkpoints,
    select_checkpoint,
)
from gptlab.checkpoints.read import load_model, read_newest_state
from gptlab.errors import BadInputError, GptlabError


@pytest.fixture
def kept(long_run, tmp_path):
    """The directory of the newest checkpoint in a copy of the long run's checkpoints, of steps 30 and 40."""
    shutil.copytree(long_run.directory / CHECKPOINTS, tmp_path / CHECKPOINTS)
    assert [c.step for c in list_checkpoints(tmp_path) if c.resumable] == [30, 40]
    return list_checkpoints(tmp_path)[-1].directory


@pytest.fixture
def restored(micro, kept):
    """`restored()` → (step of the checkpoint that is used, notices)."""

    def restore():
        notices = []
        state = read_newest_state(kept.parents[1], micro.model, notices.append)
        return state.checkpoint.step, notices

    return restore


def commit(directory):
    """Write a manifest with the current digests of the files."""
    files = {name: compute_digest(directory / name).model_dump() for name in (MODEL, OPTIMIZER)}
    change_manifest(directory / MANIFEST, lambda manifest: manifest.update(files=files))


def test_the_newest_intact_checkpoint_is_used_without_a_notice(restored):
    assert restored() == (40, [])


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("damage", ["empty", "truncated", "longer", "missing", "a directory"])
def test_a_file_of_the_wrong_size_is_named_and_an_older_checkpoint_is_used(kept, restored, name, damage):
    path = kept / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[:-1], "longer": content + b"0"}[damage])
    step, notices = restored()
    assert step == 30
    assert len(notices) == 1
    assert str(path) in notices[0]


@settings(max_examples=settings.default.max_examples // 2)
@given(name=st.sampled_from([MODEL, OPTIMIZER]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(kept, restored, name, where, bit):
    path = kept / name
    offset = int(where * path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
        file.flush()
        step, notices = restored()
        file.seek(offset)
        file.write(bytes([byte]))
    assert step == 30
    assert str(path) in notices[0]
    assert "checksum" in notices[0]


def test_damage_to_all_manifests_is_an_error_and_not_a_new_start(kept, micro):
    for path in (kept.parent).glob("*/manifest.json"):
        path.write_text("{")
    with pytest.raises(GptlabError, match="no checkpoint is intact.*manifest.json is damaged"):
        read_newest_state(kept.parents[1], micro.model, lambda notice: None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"step": 40}', b"\xff\xfe"])
def test_a_directory_with_a_damaged_manifest_is_not_a_checkpoint(kept, restored, content):
    (kept / MANIFEST).write_bytes(content)
    step, notices = restored()
    assert step == 30
    assert len(notices) == 1
    assert str(kept / MANIFEST) in notices[0]


def test_a_directory_with_the_manifest_of_another_step_is_not_a_checkpoint(kept, restored):
    shutil.copy(kept.parent / "step-00000030" / MANIFEST, kept / MANIFEST)
    assert restored()[0] == 30


@pytest.mark.parametrize("size", [10 << 30, 1_000])
def test_a_file_whose_length_does_not_fit_the_model_is_not_read(kept, restored, size):
    os.truncate(kept / MODEL, size)
    change_manifest(kept / MANIFEST, lambda manifest: manifest["files"][MODEL].update(bytes=size))
    step, notices = restored()
    assert step == 30
    assert f"{kept / MODEL} belongs to another model: {size:,} bytes" in notices[0]


def without(tensors):
    del tensors["final_norm.weight"]


def with_more(tensors):
    tensors["../../etc/passwd"] = torch.zeros(1)


def reshaped(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"].view(2, 4)


def relabelled(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"].view(torch.int32)


def halved(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"].half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "has no tensor final_norm.weight"),
        (with_more, "has a tensor ../../etc/passwd, which this model does not have"),
        (reshaped, "has final_norm.weight as [2, 4] F32, but this model needs [8] F32"),
        (relabelled, "has final_norm.weight as [8] I32"),
        (halved, "has final_norm.weight as [8] F16"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_named_even_with_a_valid_manifest(kept, restored, change, message):
    tensors = {name: tensor.clone() for name, tensor in load_file(kept / MODEL).items()}
    change(tensors)
    save_file(tensors, kept / MODEL)
    commit(kept)
    step, notices = restored()
    assert step == 30
    assert message in notices[0]


def header(document, length=None):
    encoded = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        header({}, length=2**63),
        header({}, length=2**40),
        header(b"not json"),
        header(b"[]"),
        header({"a": F32}),
        header({"a": F32, "b": F32}) + bytes(8),
        header({"a": {**F32, "data_offsets": [8, 16]}}) + bytes(16),
        header({"a": {**F32, "data_offsets": [8, 0]}}) + bytes(8),
        header({"a": {**F32, "dtype": "PICKLE"}}) + bytes(8),
        header({"a": {**F32, "shape": [2**62, 2**62]}}) + bytes(8),
        header({"__metadata__": F32}) + bytes(8),
        header({"__metadata__": {"gptlab": 7}, "a": F32}) + bytes(8),
        header({"../../x": F32}) + bytes(8),
        header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],'
               b'"data_offsets":[0,8]}}') + bytes(8),
    ],
)  # fmt: skip
def test_a_hostile_header_is_an_error_that_names_the_file_even_with_a_valid_manifest(kept, restored, content):
    (kept / MODEL).write_bytes(content)
    commit(kept)
    step, notices = restored()
    assert step == 30
    assert str(kept / MODEL) in notices[0]


@given(data=st.data())
def test_any_changed_manifest_is_valid_or_its_directory_is_not_a_checkpoint(kept, micro, data):
    document = json.loads((kept / MANIFEST).read_text())
    flat = document["content"]  # without a digest, so that any change may be accepted
    changed = oddly(document).map(as_json) | damaged(as_json(document)) | oddly(flat).map(as_json)
    (kept / MANIFEST).write_bytes(data.draw(changed))
    try:
        state = read_newest_state(kept.parents[1], micro.model, lambda notice: None)
    finally:
        (kept / MANIFEST).write_text(json.dumps(document))
    assert state.checkpoint.step in {30, 40}
    progress = state.checkpoint.manifest.progress
    assert 0 <= progress.metrics_bytes < 2**63
    assert math.isfinite(progress.loss_sum)


def not_equal(changed: str, content: str) -> bool:
    try:
        return json.loads(changed) != json.loads(content)
    except ValueError:
        return True


@given(data=st.data())
def test_any_changed_digit_of_a_manifest_is_detected(kept, restored, data):
    content = (kept / MANIFEST).read_text()
    at = data.draw(st.sampled_from([i for i, character in enumerate(content) if character.isdigit()]))
    digit = data.draw(st.sampled_from(sorted(set("0123456789") - {content[at]})))
    changed = content[:at] + digit + content[at + 1 :]
    assume(not_equal(changed, content))  # the last of 17 digits can be without effect
    (kept / MANIFEST).write_text(changed)
    step, notices = restored()
    (kept / MANIFEST).write_text(content)
    assert step == 30
    assert str(kept / MANIFEST) in notices[0]


def test_a_manifest_of_an_earlier_version_is_read_without_a_digest(kept, restored):
    (kept / MANIFEST).write_text(json.dumps(json.loads((kept / MANIFEST).read_text())["content"]))
    assert restored() == (40, [])


def test_the_newest_checkpoint_is_selected_with_a_warning_if_a_newer_manifest_is_damaged(kept, caplog):
    run_directory = kept.parents[1]
    assert select_checkpoint(run_directory, None).step == 40
    (kept / MANIFEST).write_text((kept / MANIFEST).read_text().replace('"step": 40', '"step": 41'))
    assert not caplog.records
    assert select_checkpoint(run_directory, None).step == 30
    assert f"{kept / MANIFEST} is damaged: its digest does not match its content; using the" in caplog.text
    with pytest.raises(BadInputError, match=f"{kept / MANIFEST} is damaged"):
        select_checkpoint(run_directory, 40)
    caplog.clear()
    assert select_checkpoint(run_directory, 30).step == 30
    assert not caplog.records


def test_an_error_reports_that_no_checkpoint_is_intact(kept, micro):
    for checkpoint in list_checkpoints(kept.parents[1]):
        (checkpoint.directory / OPTIMIZER).write_bytes(b"")
    with pytest.raises(GptlabError, match="no checkpoint is intact.*--fresh"):
        read_newest_state(kept.parents[1], micro.model, lambda notice: None)


def test_a_weights_only_checkpoint_is_not_resumed(kept, restored):
    change_manifest(kept / MANIFEST, lambda manifest: manifest["files"].pop(OPTIMIZER))
    assert restored() == (30, [])


def test_without_a_checkpoint_there_is_no_state(tmp_path, micro):
    assert read_newest_state(tmp_path, micro.model, pytest.fail) is None


def test_tensors_are_read_as_saved_and_do_not_change_with_the_file(kept, micro):
    state = read_newest_state(kept.parents[1], micro.model, pytest.fail)
    saved = {name: tensor.numpy().copy() for name, tensor in load_file(kept / MODEL).items()}
    (kept / MODEL).write_bytes(bytes((kept / MODEL).stat().st_size))
    assert state.weights.keys() == saved.keys()
    for name, tensor in state.weights.items():
        np.testing.assert_array_equal(tensor.numpy(), saved[name])


def test_no_model_is_loaded_from_a_damaged_file(kept, micro):
    newest = list_checkpoints(kept.parents[1])[-1]
    (kept / MODEL).write_bytes(bytes((kept / MODEL).stat().st_size))
    with pytest.raises(GptlabError, match="damaged"):
        load_model(newest, micro.model)


def test_a_model_of_another_shape_is_refused(kept, micro):
    wider = micro.with_changes({"model.n_embd": 16}).model
    with pytest.raises(GptlabError, match="belongs to another model"):
        load_model(list_checkpoints(kept.parents[1])[-1], wider)
