"""Runs with other tokenizers than GPT-2's: they are exact, and carry their tokenizer with them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gptlab
from gptlab.checkpoints.manifest import checkpoint_directory
from gptlab.commands import diff, show
from gptlab.commands.evaluate import evaluate_run
from gptlab.commands.run import Options, resume_run
from gptlab.commands.sample import sample
from gptlab.commands.train_tokenizer import train as train_tokenizer
from gptlab.data.tokenizer import TOKENIZER_SHA256
from gptlab.data.vocabularies import BYTES, tokenizer_of
from gptlab.errors import BadInputError
from gptlab.identity import identify
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.text import abbreviate_hash
from gptlab.tracking.metrics import read_metrics
from gptlab.tracking.records import TextRecord
from gptlab.tracking.run import Run, create_run, load_run
from gptlab.training.initial import find_branch, find_initial_weights

Train = Callable[..., object]


@pytest.fixture(scope="module")
def tokenizer_file(text_file: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "words.json"
    train_tokenizer(str(text_file), 300, str(path))
    return path


@pytest.fixture
def of_bytes(micro: Experiment) -> Experiment:
    return micro.with_changes({"data.tokenizer": "bytes", "model.vocab_size": 256, "train.steps": 20})


@pytest.fixture
def of_file(micro: Experiment, tokenizer_file: Path, tmp_path: Path) -> Experiment:
    shutil.copy(tokenizer_file, tmp_path / "mine.json")
    changes = {"data.tokenizer": str(tmp_path / "mine.json"), "model.vocab_size": 300, "train.steps": 10}
    return micro.with_changes(changes)


def resume(run: Run, steps: int) -> Run:
    return resume_run(run, Options(wandb="off", steps=steps), Console(stderr=True)).run


def tensors(run: Run, step: int) -> list[bytes]:
    folder = checkpoint_directory(run.directory, step)
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def test_a_run_of_bytes_resumes_exactly(train, of_bytes, tmp_path, monkeypatch):
    whole = train(of_bytes).run
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "other-runs"))
    resumed = resume(train(of_bytes, steps=10).run, 20)
    assert resumed.id == whole.id
    assert tensors(resumed, 20) == tensors(whole, 20)
    columns = ("step", "train/loss", "val/loss", "val/bpb", "val/yardstick", "epoch")
    rows = [[[row.get(column) for column in columns] for row in read_metrics(r.directory)] for r in (whole, resumed)]
    assert rows[0] == rows[1]
    assert not (whole.directory / "tokenizer.json").exists()


def test_bits_per_byte_of_a_run_of_bytes_are_its_loss_in_bits(train, of_bytes):
    run = train(of_bytes, steps=10).run
    row = next(row for row in read_metrics(run.directory) if row["step"] == 10)
    assert row["val/bpb"] == pytest.approx(row["val/loss"] / math.log(2), rel=1e-12)
    evaluation = evaluate_run(run, step=None, text=None, device="cpu", console=Console(stderr=True)).evaluation
    assert evaluation.bytes == evaluation.tokens


def test_bits_per_byte_divide_by_the_bytes_of_the_predicted_tokens(train, of_file, text_file):
    run = train(of_file).run
    evaluation = evaluate_run(run, step=None, text=None, device="cpu", console=Console(stderr=True)).evaluation
    model, tokenizer = gptlab.load(str(run.directory))
    val = text_file.read_bytes()[-round(0.1 * text_file.stat().st_size) :].decode()
    encoded = tokenizer.encode(val[val.index("\n") :])
    encoded = encoded[: (len(encoded) - 1) // 16 * 16 + 1]
    windows = torch.tensor([encoded[start : start + 17] for start in range(0, len(encoded) - 1, 16)])
    with torch.no_grad():
        nats = float(model(windows[:, :-1], windows[:, 1:])) * (len(encoded) - 1)
    size = len(tokenizer.decode(encoded[1:]).encode())
    assert evaluation.bytes == pytest.approx(size, abs=100)
    assert evaluation.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=0.05)


def test_a_model_of_bytes_writes_text(train, of_bytes):
    run = train(of_bytes, steps=5).run
    (text,) = [row["text"] for row in run.samples()]
    options = {"max_tokens": None, "temperature": 1.0, "top_k": 0, "seed": 0}
    texts = sample(run, None, "é", 3, **options).texts
    assert all(isinstance(text, str) and text for text in [text, *texts])
    assert sample(run, None, "é", 3, **options).texts == texts
    model, tokenizer = gptlab.load(str(run.directory))
    assert tokenizer is BYTES
    assert model(torch.tensor([tokenizer.encode("The")])).shape == (1, 3, 256)


def test_only_the_hash_of_the_tokenizer_is_in_the_identity(train, of_file, tmp_path):
    run = train(of_file, steps=1).run
    moved = tmp_path / "moved.json"
    shutil.copy(of_file.data.tokenizer, moved)
    assert train(of_file.with_changes({"data.tokenizer": str(moved)}), steps=1).run.id == run.id
    assert "tokenizer" not in run.record.identity["data"]
    moved.write_bytes(moved.read_bytes() + b"\n")
    assert train(of_file.with_changes({"data.tokenizer": str(moved)}), steps=1).run.id != run.id


def test_a_run_keeps_its_tokenizer_when_the_file_is_gone_or_another(train, of_file, tmp_path, capfd):
    run = train(of_file, steps=5).run
    mine = Path(of_file.data.tokenizer)
    assert (run.directory / "tokenizer.json").read_bytes() == mine.read_bytes()
    for damage in (mine.unlink, lambda: mine.write_text("{}")):
        damage()
        moved = load_run(Path(shutil.copytree(run.directory, tmp_path / damage.__name__ / run.id)))
        assert resume(moved, 6).history().status == "complete"
        evaluate_run(moved, step=None, text=None, device="cpu", console=Console(stderr=True))
        sample(moved, None, "The", 1, max_tokens=2, temperature=1.0, top_k=0, seed=0)
        assert gptlab.load(str(moved.directory))[1].vocab_size == 300
        with pytest.raises(BadInputError):
            tokenizer_of(run.record.spec)


@pytest.mark.parametrize("damage", ["missing", "damaged", "another"])
def test_a_damaged_copy_is_replaced_by_the_original_or_named(train, of_file, tokenizer_file, caplog, damage):
    run = train(of_file, steps=5).run
    copy, mine = run.directory / "tokenizer.json", Path(of_file.data.tokenizer)
    content = {"damaged": b"[" * 10, "another": mine.read_bytes().replace(b"1.0", b"1.1")}

    def harm() -> None:
        copy.unlink() if damage == "missing" else copy.write_bytes(content[damage])

    harm()
    assert resume(run, 6).history().status == "complete"
    word = "missing" if damage == "missing" else "damaged"
    assert f"tokenizer.json is {word}; '{mine}' is used instead" in caplog.text
    assert copy.read_bytes() == mine.read_bytes(), "resuming restores the copy"
    harm()
    mine.unlink()
    answer = f"tokenizer.json is {word}; copy a tokenizer.json with sha256 {run.record.tokenizer_sha256} there"
    for use in (
        lambda: resume(run, 7),
        lambda: sample(run, None, "The", 1, max_tokens=2, temperature=1.0, top_k=0, seed=0),
        lambda: evaluate_run(run, step=None, text=None, device="cpu", console=Console(stderr=True)),
        lambda: gptlab.load(str(run.directory)),
    ):
        with pytest.raises(BadInputError, match=answer):
            use()


@pytest.mark.parametrize("kind", ["initial_weights", "branch"])
def test_a_parent_with_another_tokenizer_of_the_same_size_is_refused(train, of_file, tmp_path, kind):
    reference = train(of_file, steps=1).run.id
    child = of_file.vary("child", why="Other tokens?", **{"train.steps": 2})
    parent = find_initial_weights(reference) if kind == "initial_weights" else find_branch(reference, child)
    mine = Path(of_file.data.tokenizer)
    mine.write_bytes(mine.read_bytes() + b"\n")
    with pytest.raises(BadInputError, match="has another tokenizer than .*mine.json' of experiment child"):
        train(child, initial_weights=parent)
    mine.write_bytes(mine.read_bytes()[:-1])
    moved = child.with_changes({"data.tokenizer": str(mine.rename(mine.with_name("moved.json")))})
    assert getattr(train(moved, initial_weights=parent).run.record, kind) == parent


def test_another_tokenizer_of_an_experiment_is_another_run_with_the_reason(train, gpt2_micro, of_bytes, capfd):
    train(gpt2_micro, steps=1)
    train(of_bytes, steps=1)
    said = " ".join(capfd.readouterr().err.split())
    assert "new run; differs from micro-" in said
    assert f"tokenizer_sha256 {abbreviate_hash(TOKENIZER_SHA256)} → {abbreviate_hash(BYTES.sha256)}" in said
    assert "bytes · 256 tokens · 1.00 bytes per token" in said


def test_show_and_diff_name_the_tokenizers(train, gpt2_micro, of_bytes, project):
    runs = [train(spec, steps=5).run for spec in (gpt2_micro, of_bytes)]
    assert show.describe(runs[1].id).document()["tokenizer"] == {"name": "bytes", "sha256": BYTES.sha256}
    compared = diff.compare(*map(diff.recorded_side, runs))
    assert compared.sections["data"]["tokenizer"] == ("gpt2", "bytes")
    losses = {key.partition(" ")[0] for key in compared.sections["results"] if "/loss" in key or "bpb" in key}
    assert losses == {"val/bpb"}
    assert any("different tokenizers, so their losses per token are not comparable" in note for note in compared.notes)
    same = diff.compare(diff.recorded_side(runs[0]), diff.recorded_side(runs[0]))
    assert not any("tokenizer" in note for note in same.notes)
    spec = json.loads(of_bytes.model_dump_json())
    (project / "experiments" / "micro.py").write_text(
        f"from gptlab.spec import Experiment\nmicro = Experiment.model_validate({spec!r})\n"
    )
    now = diff.compare(diff.recorded_side(runs[0]), diff.current_side(runs[0]))
    assert now.sections["data"]["tokenizer_sha256"] == (TOKENIZER_SHA256, BYTES.sha256)


def test_a_run_has_its_tokenizer_before_it_has_a_record(of_file, monkeypatch):
    identity = identify(of_file, precision="float32", text_sha256="ab", tokenizer_sha256="cd")
    written = []
    monkeypatch.setattr("gptlab.tracking.run.write_durably", lambda path, content: written.append(path.name))
    text = TextRecord(source="words", path="/words.txt", bytes=1, sha256="ab")
    create_run(of_file, identity, 0, "float32", text, tokenizer=b"{}")
    assert written == ["tokenizer.json", "run.json"]


def test_a_folder_in_place_of_the_copy_does_not_hinder_reading(train, of_file, tokenizer_file, caplog):
    run = train(of_file, steps=5).run
    (run.directory / "tokenizer.json").unlink()
    (run.directory / "tokenizer.json").mkdir()
    sample(run, None, "The", 1, max_tokens=2, temperature=1.0, top_k=0, seed=0)
    assert "tokenizer.json is damaged; " in caplog.text
