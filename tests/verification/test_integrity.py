"""Every file that has a checksum is checked, and each change of it is named."""

import json
import random
import shutil
from pathlib import Path

import explained
import pytest

from gptlab.errors import GptlabError
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run, load_run
from gptlab.verification.integrity import Integrity, check_integrity


def check(directory: Path) -> Integrity:
    """The check of a run's files as a new process does it."""
    run = load_run(directory)
    return check_integrity(run, run.history())


def flip_bit(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_an_undamaged_run_is_as_it_was_written(copied: Run):
    found = check(copied.directory)
    assert found.damage == ()
    patches = len(list(copied.directory.glob("*.patch")))  # if this repository has uncommitted changes
    assert found.files == 9 + patches, "run.json, attempts.jsonl, metrics.jsonl, and three files of two checkpoints"


def test_one_flipped_bit_in_any_file_of_a_checkpoint_or_record_is_named(copied: Run):
    choose = random.Random(1)
    files = [path for path in copied.directory.rglob("*") if path.suffix in {".json", ".jsonl", ".safetensors"}]
    checked = [path for path in files if path.name != "samples.jsonl"]
    assert len(checked) == 9
    for path in checked:
        intact = path.read_bytes()
        for position in (0, len(intact) - 1, *(choose.randrange(len(intact)) for _ in range(4))):
            flip_bit(path, position, choose.randrange(8))
            try:
                named = [damage.file for damage in check(copied.directory).damage]
            except GptlabError as error:  # a record that cannot be parsed
                named = [str(error)]
            is_layout = path.name in {"run.json", "manifest.json"} and json_of(path) == json_of_bytes(intact)
            assert is_layout or any(path.name in name for name in named), (path, position)
            path.write_bytes(intact)


def json_of(path: Path) -> object:
    return json_of_bytes(path.read_bytes())


def json_of_bytes(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content


def test_a_changed_digit_anywhere_in_the_metrics_is_found(copied: Run):
    choose, path = random.Random(2), copied.directory / METRICS
    shutil.rmtree(copied.directory / "checkpoints")  # reading them 200 times takes a second
    intact = path.read_bytes()
    digits = [position for position, byte in enumerate(intact) if chr(byte).isdigit()]
    for position in choose.sample(digits, 200):
        changed = bytearray(intact)
        changed[position] = ord("0") + (changed[position] - ord("0") + choose.randrange(1, 10)) % 10
        path.write_bytes(changed)
        assert [damage.file for damage in check(copied.directory).damage] == [METRICS], position


@pytest.mark.parametrize("name", ["attempts.jsonl", "metrics.jsonl"])
def test_a_lost_row_is_found(copied: Run, name: str):
    path = copied.directory / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    assert [damage.file for damage in check(copied.directory).damage] == [name]


def test_missing_files_are_named(copied: Run):
    for name in ("model.safetensors", "optimizer.safetensors", "manifest.json"):
        path = copied.directory / "checkpoints" / "step-00000030" / name
        content = path.read_bytes()
        path.unlink()
        (damage,) = check(copied.directory).damage
        assert str(damage) == f"checkpoints/step-00000030/{name} is missing"
        path.write_bytes(content)


def test_what_no_checksum_covers_is_said(copied: Run):
    attempts = copied.directory / "attempts.jsonl"
    attempts.write_text(attempts.read_text().splitlines(keepends=True)[0])  # as after a kill
    shutil.rmtree(copied.directory / "checkpoints" / "step-00000040")
    found = check(copied.directory)
    assert found.damage == ()
    assert any("no checksum covers the rows of metrics.jsonl from step 35 on" in note for note in found.notes)
    shutil.rmtree(copied.directory / "checkpoints")  # as in a bundle without checkpoints
    (note,) = check(copied.directory).notes
    assert note.startswith("no checksum covers metrics.jsonl: the run was killed, and no checkpoint of it is here")


def test_an_explanation_of_losses_is_checked_by_its_checksum(copied: Run):
    path = explained.store(copied, explained.explanation())
    before = check(copied.directory)
    assert before.damage == ()
    flip_bit(path, path.stat().st_size - 1, 0)
    after = check(copied.directory)
    assert [damage.file for damage in after.damage] == [f"evaluations/{path.name}"]
    assert after.files == before.files - 1
