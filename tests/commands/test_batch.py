"""`gptlab batch` prints what a step trained on, and refuses what it cannot know."""

from pathlib import Path

import pytest
from support import run_attempt

from gptlab.commands.batch import covering_row, read_batch
from gptlab.errors import BadInputError
from gptlab.training.loop import TrainingLoop


def test_passages_are_those_of_the_step_and_lie_in_the_text(gpt2_micro, monkeypatch):
    trained, original = {}, TrainingLoop._batch
    monkeypatch.setattr(TrainingLoop, "_batch", lambda loop, step: trained.setdefault(step, original(loop, step)))
    run = run_attempt(gpt2_micro, steps=12).run
    text = Path(gpt2_micro.data.text).read_bytes()
    for step in (0, 7, 11):
        batch = read_batch(run, step)
        assert len(batch.passages) == 2
        for passage, tokens in zip(batch.passages, trained[step].tolist(), strict=True):
            from gptlab.data.vocabularies import GPT2

            assert passage.text == GPT2.decode(tokens)
            assert text[passage.byte : passage.byte + passage.bytes].decode() == passage.text
    rows = [covering_row(run, step) for step in (0, 4, 5, 11)]
    assert [(row.step, row.first) for row in rows if row] == [(5, 0), (5, 0), (10, 5), (12, 10)]
    for step in (12, 10**9):
        with pytest.raises(BadInputError, match="its steps are from 0 to 11"):
            read_batch(run, step)


def test_a_changed_or_missing_text_is_refused(micro, tmp_path):
    copy = tmp_path / "words.txt"
    copy.write_bytes(Path(micro.data.text).read_bytes())
    run = run_attempt(micro.with_changes({"data.text": str(copy)}), steps=1).run
    copy.write_bytes(copy.read_bytes() + b"more")
    with pytest.raises(BadInputError, match="has changed"):
        read_batch(run, 0)
    copy.unlink()
    with pytest.raises(BadInputError, match="cannot be read"):
        read_batch(run, 0)
