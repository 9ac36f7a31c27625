"""`gptlab eval --explain`: tables, one JSON document, the stored file, and two models on the same windows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import run_attempt, typed

from gptlab.commands.evaluate import find_windows
from gptlab.commands.explain import check_same_windows
from gptlab.commands.export import export_run
from gptlab.data.vocabularies import GPT2
from gptlab.errors import BadInputError
from gptlab.explanation.stored import read_all
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.run import Run

Typed = Callable[..., str]

CHANGES = {"data.tokenizer": "bytes", "model.vocab_size": 256, "train.sequence_length": 32, "model.context_length": 32}


@pytest.fixture(scope="module")
def runs(micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Run]:
    """A runs directory with two runs on bytes that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("explained") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder))
        patch.setenv("GPTLAB_CACHE", str(cache))
        first = run_attempt(micro.with_changes(CHANGES), steps=20).run
        second = run_attempt(micro.with_changes(CHANGES | {"train.learning_rate": 1e-3}), steps=20).run
    return folder, first, second


@pytest.fixture
def gptlab(runs: tuple[Path, Run, Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    monkeypatch.setenv("GPTLAB_RUNS", str(runs[0]))
    return typed(monkeypatch, capfd)


def test_one_model_is_explained_in_tables_sentences_and_one_document(runs: tuple[Path, Run, Run], gptlab: Typed):
    _, run, _ = runs
    plain = json.loads(gptlab("eval", run.id, "--json"))
    out = gptlab("eval", run.id, "--explain", "--passages", "30")
    assert all(len(line) <= 80 for line in out.splitlines() if "±" in line and "nats" not in line and "%" not in line)
    for line in ("loss by position", "loss by frequency", "memorization: passages continued verbatim for 16 tokens"):
        assert line in out
    assert "With 17–32 tokens of context the loss is" in out
    assert "times in the training part are" in out
    assert "With a prompt of 16 tokens," in out
    assert "prompts of 32 and 64 tokens with a continuation of 16 do not fit into windows of 32" in out
    document = json.loads(gptlab("eval", run.id, "--explain", "--passages", "30", "--json"))
    assert {key: document[key] for key in plain} == plain, "the same losses as without --explain"
    for table in ("by_position", "by_frequency"):
        rows = document[table]
        assert sum(row["tokens"] for row in rows) == plain["tokens"]
        total = sum(row["tokens"] * row["loss"] for row in rows if row["tokens"])
        assert total / plain["tokens"] == pytest.approx(plain["loss"], abs=1e-9)
    assert {row["passages"] + row["excluded"] for row in document["memorization"]} == {30}
    (stored,) = read_all(run.directory / "evaluations")
    assert (stored.step, stored.yardstick) == (20, plain["yardstick"])
    assert stored.explanation.facts.trained_windows == 40


def test_two_runs_are_compared_on_the_same_windows(runs: tuple[Path, Run, Run], gptlab: Typed):
    _, first, second = runs
    out = gptlab("eval", first.id, second.id, "--explain", "--passages", "30")
    assert "B − A" in out
    assert "B's loss is" in out
    document = json.loads(gptlab("eval", first.id, second.id, "--explain", "--passages", "30", "--json"))
    losses = [{row["context"]: row["loss"] for row in document[side]["by_position"]} for side in ("a", "b")]
    differences = {row["bin"]: row for row in document["differences"] if row["kind"] == "position"}
    for context, row in differences.items():
        assert row["difference"] == pytest.approx(losses[1][context] - losses[0][context])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert all(row["paired"] for row in document["differences"])


def test_only_what_can_be_measured_is_and_the_rest_is_named(runs: tuple[Path, Run, Run], gptlab: Typed, tmp_path: Path):
    _, run, _ = runs
    files = set((run.directory / "evaluations").glob("*"))
    out = gptlab("eval", run.id, "--explain", "--string", "a sentence of some words, which is one window")
    assert "memorization is measured on the run's own text: leave out --text and --string" in out
    assert "explained " not in out
    assert "with one" in out
    assert set((run.directory / "evaluations").glob("*")) == files
    short = tmp_path / "short.txt"
    short.write_text("ab")
    out = gptlab("eval", run.id, "--explain", "--text", str(short))
    assert "The windows have one position" in out
    assert "nan" not in out
    other = gptlab("eval", run.id, str(tmp_path), "--explain", code=2)
    assert "there is no run in" in other


def test_a_directory_is_explained_on_a_text_without_memorization(
    runs: tuple[Path, Run, Run], gptlab: Typed, tmp_path: Path
):
    _, run, _ = runs
    directory, words = tmp_path / "export", tmp_path / "words.txt"
    export_run(run, str(directory), None)
    words.write_text("the model reads one token after another and writes what it has read " * 20)
    document = json.loads(gptlab("eval", str(directory), "--text", str(words), "--explain", "--json"))
    assert document["counted_in_training_part"] is False
    assert document["not_measured"].startswith("memorization is measured on what a run was trained on")
    assert sum(row["tokens"] for row in document["by_frequency"]) == document["tokens"]
    out = gptlab("eval", str(directory), run.id, "--text", str(words), "--explain")
    assert "tokens were counted in different texts, so their losses by frequency are not compared" in out
    out = gptlab("eval", str(directory), str(directory), "--text", str(words), "--explain")
    assert "For tokens that occur" in out
    assert "training part" not in out, "no model's training part is known"


def test_models_on_different_windows_are_not_compared(runs: tuple[Path, Run, Run], gptlab: Typed, micro: Experiment):
    _, first, _ = runs
    other = run_attempt(micro.with_changes(CHANGES | {"train.sequence_length": 16}), steps=1).run
    before = sorted(first.directory.rglob("*"))
    assert "read windows of 32 and 16 tokens; windows must be equal" in gptlab(
        "eval", first.id, other.id, "--explain", code=2
    )
    assert sorted(first.directory.rglob("*")) == before, "nothing was evaluated"
    subject = find_windows(first, step=None, text=None, device="cpu", console=Console(stderr=True))
    other_text = replace(subject, held_out=replace(subject.held_out, sha256="ef" * 32))
    with pytest.raises(BadInputError, match="have different validation texts; evaluate both on the same one"):
        check_same_windows(subject, other_text)
    with pytest.raises(BadInputError, match="cannot be compared token by token: their tokenizers differ"):
        check_same_windows(subject, replace(subject, held_out=replace(subject.held_out, tokenizer=GPT2)))
