"""`gptlab tokens` shows the losses that `gptlab eval` computes, of one run or two, and refuses what has no meaning."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import run_attempt, typed

from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.commands.evaluate import evaluate_run
from gptlab.commands.tokens import open_reader, read_passage
from gptlab.data.vocabularies import BYTES
from gptlab.huggingface.directory import LoadedDirectory
from gptlab.terminal.console import Console

PASSAGE = {"text": None, "string": None, "first": 0, "count": 40, "device": "cpu", "console": Console(stderr=True)}
STRING = "The model learns to read. 😀 naïve\n\tand writes"
SHORT = "naïve 😀 reads"


@pytest.fixture
def gptlab(monkeypatch, capfd):
    return typed(monkeypatch, capfd)


def test_losses_are_those_of_eval_and_alternatives_are_probabilities(long_run):
    passage = read_passage([open_reader(long_run, None)], **{**PASSAGE, "string": SHORT})
    assert len(passage.ids) == 17, "one window"
    evaluated = evaluate_run(long_run, step=None, text=None, device="cpu", console=Console(stderr=True), string=SHORT)
    assert passage.loss(0) == pytest.approx(evaluated.evaluation.loss, abs=1e-6)
    assert passage.bits_per_byte(0) == pytest.approx(evaluated.evaluation.bits_per_byte, abs=1e-6)
    own = read_passage([open_reader(long_run, None)], **{**PASSAGE, "count": 400})
    ranks = set()
    for token in own.document()["tokens"][1:]:
        (scores,) = token["scores"]
        probabilities = [alternative["probability"] for alternative in scores["alternatives"]]
        ids = [alternative["id"] for alternative in scores["alternatives"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6
        assert (scores["rank"] == 1) == (token["id"] == ids[0])
        if token["id"] in ids:
            assert np.log(probabilities[ids.index(token["id"])]) == pytest.approx(-scores["loss"], abs=1e-5)
        ranks.add(scores["rank"])
    assert 1 in ranks
    assert len(ranks) > 5


def test_two_runs_are_compared_token_by_token_on_the_page_and_in_the_document(long_run, gptlab, tmp_path):
    folder, page = str(long_run.directory), tmp_path / "new" / "page.html"
    document = json.loads(gptlab("tokens", f"{folder}@30", folder, "--tokens", "300", f"--out={page}", "--json"))
    assert document["page"] == str(page)
    assert [(run["run"], run["step"]) for run in document["runs"]] == [(long_run.id, 30), (long_run.id, 40)]
    tokens = document["tokens"]
    assert [token["index"] for token in tokens] == list(range(300))
    assert tokens[0]["scores"] == [None, None]
    changes = [second["loss"] - first["loss"] for first, second in (token["scores"] for token in tokens[1:])]
    difference = document["difference"]
    assert difference["mean"] == pytest.approx(np.mean(changes), abs=1e-9)
    assert difference["mean"] == pytest.approx(document["runs"][1]["loss"] - document["runs"][0]["loss"], abs=1e-9)
    assert difference["low"] < difference["mean"] < difference["high"] < 0, "10 more steps help"
    assert difference["blocks"] == 4
    assert page.read_text().count('role="option"') == 300
    printed = gptlab("tokens", f"{folder}@30", folder, "--from-token", "50", "--tokens", "9")
    assert "tokens 50 to 58 of the validation split" in printed
    assert f"{long_run.id}-step-30-{long_run.id}.html" in printed


def test_a_directory_of_transformers_is_a_model_too_and_unknown_training_is_said(
    long_run, gptlab, tmp_path, monkeypatch
):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").touch()
    loaded = LoadedDirectory(
        folder, load_model(select_checkpoint(long_run.directory, None), long_run.record.spec.model), BYTES
    )
    monkeypatch.setattr("gptlab.commands.tokens.load_directory", lambda path: loaded)
    document = json.loads(gptlab("tokens", str(long_run.directory), str(folder), "--tokens", "12", "--json"))
    assert document["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    assert document["difference"]["low"] is None, "too few tokens for an interval"
    assert [run["sequence_length"] for run in document["runs"]] == [16, 32]
    (note,) = document["notes"]
    assert "is unknown: it may have seen this passage" in note
    assert "windows of 16 tokens for A and 32 tokens for B" in Path(document["page"]).read_text()
    assert "give one to look at: --text FILE" in gptlab("tokens", str(folder), code=2)


def test_other_tokenizers_are_refused_and_other_training_texts_are_said(long_run, micro, gpt2_micro, gptlab):
    small = {"train.steps": 1, "data.val_windows": 1}
    of_gpt2 = run_attempt(gpt2_micro.with_changes(small)).run
    complaint = gptlab("tokens", str(long_run.directory), str(of_gpt2.directory), code=2)
    assert "have different tokenizers" in complaint
    assert "in bits per byte: `gptlab eval`" in complaint
    other = run_attempt(micro.with_changes({**small, "data.val_fraction": 0.5})).run
    assert "it may have seen this passage" in gptlab("tokens", str(other.directory), str(long_run.directory))
    printed = gptlab("tokens", str(of_gpt2.directory), "--string", STRING)
    assert "of the string" in printed
    assert "nats · " in printed
