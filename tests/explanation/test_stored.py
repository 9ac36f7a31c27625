"""The file of an explanation is read back as it was, and anything else is refused with its name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from explained import explanation

from gptlab.errors import BadInputError, GptlabError
from gptlab.explanation import rows, stored
from gptlab.explanation.bins import frequency_bins, numbers_of_bins, position_bins


def test_bins_double_by_position_and_quadruple_by_frequency():
    assert [bin_.label for bin_ in position_bins(100)] == ["1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–100"]
    assert [bin_.label for bin_ in position_bins(1)] == ["1"]
    bins = frequency_bins(200)
    assert [bin_.label for bin_ in bins] == ["0", "1–2", "3–8", "9–32", "33–128", "129–512"]
    assert numbers_of_bins(np.array([0, 1, 2, 3, 8, 9, 200]), bins).tolist() == [0, 1, 1, 2, 2, 3, 5]


def test_a_file_is_read_back_and_small(tmp_path):
    found = explanation(blocks=stored.MAX_BLOCKS)
    content = stored.to_bytes(found)
    assert len(content) < stored.MAX_BYTES / 10
    (tmp_path / stored.file_name(7, "0123abcd")).write_bytes(content)
    (tmp_path / "explained-step-7-0123abcd.safetensors").write_bytes(b"another name")
    (one,) = stored.read_all(tmp_path)
    assert (one.step, one.yardstick, one.explanation.facts) == (7, "0123abcd", found.facts)
    assert rows.by_position(one.explanation) == rows.by_position(found)
    assert rows.memorization(one.explanation) == rows.memorization(found)


def test_every_flipped_bit_of_the_values_and_facts_is_found(tmp_path):
    content, path = stored.to_bytes(explanation()), tmp_path / "file.safetensors"
    facts = content.index(b"__metadata__")
    values = np.random.default_rng(0).integers(8 + int.from_bytes(content[:8], "little"), len(content), size=40)
    for place in [*range(facts + 20, facts + 200, 7), *values.tolist()]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(GptlabError, match=r"file\.safetensors"):
            stored.read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, tensors: facts.update(windows=3),
        lambda facts, tensors: facts.update(sequence_length=64),
        lambda facts, tensors: facts.update(most=-1),
        lambda facts, tensors: facts.update(prompts=[8] * 17),
        lambda facts, tensors: facts.pop("counted"),
        lambda facts, tensors: tensors.pop("windows"),
        lambda facts, tensors: tensors.update(windows=np.zeros(40)),
        lambda facts, tensors: tensors.update(trained_match=np.full((3, 2), -2)),
        lambda facts, tensors: tensors.update(more=np.zeros(1)),
    ],
)
def test_a_file_with_other_contents_is_one_line(tmp_path, change):
    content = stored.to_bytes(explanation())
    tensors = safetensors.numpy.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["gptlab"])
    change(facts, tensors)
    path = tmp_path / "file.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"gptlab": json.dumps(facts)}))
    with pytest.raises(GptlabError, match=r"file\.safetensors does not contain an explanation"):
        stored.read(path)


def test_other_files_are_one_line(tmp_path):
    path = tmp_path / "file.safetensors"
    for content in (b"", b"\xff" * 100, safetensors.numpy.save({"a": np.zeros(1)}), bytes(stored.MAX_BYTES + 1)):
        path.write_bytes(content)
        with pytest.raises(GptlabError, match=r"file\.safetensors"):
            stored.read(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(1)}, {"gptlab": "[" * 100_000}))
    with pytest.raises(GptlabError, match="does not contain an explanation"):
        stored.read(path)


def test_differences_are_paired_and_of_the_same_windows_only():
    first = explanation()
    second = replace(first, position_loss=first.position_loss - 0.5, held_out_start=np.array([1, 2, 3]))
    found = rows.differences(first, second)
    positions = [row for row in found if row["kind"] == "position"]
    widths = [1, 1, 2, 4]
    assert [row["difference"] for row in positions] == pytest.approx([-0.5 / (2 * width) for width in widths])
    assert all(row["difference_high"] - row["difference_low"] < 1e-6 for row in positions), "all variation is shared"
    assert [row["difference"] for row in found if row["kind"] == "memorization"] == [0, 0, 0, 0]
    assert [row["paired"] for row in found if row["kind"] == "memorization"] == [True, False, True, False]
    counted_elsewhere = replace(second, facts=second.facts.model_copy(update={"counted": "cd" * 32}))
    assert "frequency" not in {row["kind"] for row in rows.differences(first, counted_elsewhere)}
    with pytest.raises(BadInputError, match="the windows are not the same"):
        rows.differences(first, replace(second, position_bytes=first.position_bytes + 1))


def test_excluded_passages_count_in_no_share():
    by_part = {(row["prompt"], row["part"]): row for row in rows.memorization(explanation())}
    row = by_part[8, "trained"]
    assert (row["passages"], row["excluded"], row["verbatim"], row["share"]) == (2, 1, 1, 0.5)
    assert (row["match"], by_part[16, "trained"]["verbatim"]) == (2.5, 2)
    assert by_part[16, "held out"]["verbatim"] == 0
