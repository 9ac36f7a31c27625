"""Exports load in the real `transformers` and compute the same; what it writes loads here and computes the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support import run_attempt

from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.commands.export import export_run
from gptlab.commands.sample import sample
from gptlab.data.vocabularies import BYTES, GPT2, FileTokenizer
from gptlab.huggingface.config import config_document
from gptlab.huggingface.directory import load_directory
from gptlab.huggingface.export import document, write_directory
from gptlab.huggingface.tokenizer_files import read_tokenizer, tokenizer_files
from gptlab.huggingface.weights import to_theirs
from gptlab.model import gpt
from gptlab.spec import ModelSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "The quick brown fox, isn't it?  Two  spaces\n\n\tand a tab",
    "naïve Ελληνικά 日本語 🙂 \u200b\x00\x1b[31m",
    "a <|endoftext|> b<|endoftext|>",
    " leading and trailing ",
    "",
    "x" * 300 + "1234567890" * 9,
]
SPECS = {
    "tied": ModelSpec(n_layer=2, n_head=2, n_embd=8, context_length=16, vocab_size=300, tied=True),
    "untied": ModelSpec(n_layer=2, n_head=2, n_embd=8, context_length=16, vocab_size=300),
    "odd": ModelSpec(n_layer=3, n_head=3, n_embd=15, context_length=7, vocab_size=257, dropout=0.3),
    "one": ModelSpec(n_layer=1, n_head=1, n_embd=1, context_length=1, vocab_size=256, tied=True),
    **{
        name: ModelSpec(n_layer=1, n_head=2, n_embd=6, context_length=9, vocab_size=256, activation=name)
        for name in ("gelu-exact", "relu", "relu2", "silu")
    },
}


def random_model(spec: ModelSpec, seed: int = 0) -> gpt.GPT:
    """A model whose weights, biases and norms are all random and not small."""
    model, generator = gpt.empty(spec), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def write(directory: Path, model: gpt.GPT) -> Path:
    files = {"config.json": document(config_document(model.spec))}
    write_directory(directory, to_theirs(model.state_dict()), files)
    return directory


def assert_equal_logits(ours: gpt.GPT, theirs: Any) -> None:
    """Compare all logits of a batch in float64."""
    spec = ours.spec
    tokens = torch.randint(spec.vocab_size, (3, spec.context_length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = ours.double().eval()(tokens)
        found = theirs.double().eval()(tokens).logits
    assert found.dtype == torch.float64
    assert (found - expected).abs().max().item() < 1e-10
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_an_exported_model_has_equal_logits_in_transformers(transformers, tmp_path, name):
    model = random_model(SPECS[name])
    directory = write(tmp_path / "export", model)
    loaded, facts = transformers.GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    assert not any(facts.values()), facts
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == SPECS[name].tied
    assert_equal_logits(model, loaded)
    again = load_directory_without_tokenizer(directory, SPECS[name])
    for key, weight in random_model(SPECS[name]).state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def load_directory_without_tokenizer(directory: Path, spec: ModelSpec) -> gpt.GPT:
    from gptlab.huggingface.config import read_spec
    from gptlab.huggingface.weights import read_model_weights

    found = read_spec(directory)
    assert found == spec.model_copy(update={"dropout": 0.0})
    return gpt.with_weights(found, read_model_weights(directory, found)[0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "3KB"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu"])
def test_a_model_of_transformers_has_equal_logits_here(transformers, tmp_path, tied, shard, activation):
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=3,
        n_embd=12,
        n_positions=11,
        vocab_size=259,
        tie_word_embeddings=tied,
        activation_function=activation,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "3KB")
    from gptlab.huggingface.config import read_spec
    from gptlab.huggingface.weights import read_model_weights

    spec = read_spec(tmp_path)
    assert_equal_logits(gpt.with_weights(spec, read_model_weights(tmp_path, spec)[0]), theirs)


def test_half_precision_and_a_model_without_a_head_are_read(transformers, tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=8, vocab_size=50257)
    theirs = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "half")
    theirs.transformer.save_pretrained(tmp_path / "body")  # its names have no prefix, as those of the original GPT-2
    with safe_open(tmp_path / "body" / "model.safetensors", "pt") as file:
        assert "wte.weight" in file.keys()  # noqa: SIM118 - it is no mapping
    for name in ("half", "body"):
        loaded = load_directory(tmp_path / name)
        assert loaded.tokenizer is GPT2  # there is no file, but enough embeddings
        assert_equal_logits(loaded.model, theirs)


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes", "file"])
def test_transformers_finds_the_same_tokens(transformers, tmp_path, tokenizer):
    content = (ROOT / "experiments" / "tokenizers" / "pandas-docs-4096.json").read_bytes()
    ours = {"gpt2": GPT2, "bytes": BYTES, "file": FileTokenizer("file.json", content)}[tokenizer]
    config = config_document(ModelSpec(vocab_size=ours.vocab_size))
    for name, written in {"config.json": document(config), **tokenizer_files(ours, 1024)}.items():
        (tmp_path / name).write_bytes(written)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    for text in [*TEXTS, (ROOT / "README.md").read_text()]:
        tokens = ours.encode(text)
        assert theirs(text, add_special_tokens=True)["input_ids"] == tokens
        assert theirs.decode(tokens) == ours.decode(tokens) == text
    assert read_tokenizer(tmp_path, ours.vocab_size).sha256 == ours.sha256
    theirs.save_pretrained(tmp_path / "again")
    again = read_tokenizer(tmp_path / "again", ours.vocab_size)
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_the_tokenizer_of_gpt2_is_recognized_in_the_files_of_transformers(transformers, tmp_path):
    written = json.loads(tokenizer_files(GPT2, 1024)["tokenizer.json"])["model"]
    theirs = transformers.GPT2Tokenizer(vocab=written["vocab"], merges=[tuple(pair) for pair in written["merges"]])
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]  # it declares <|endoftext|>
    assert read_tokenizer(tmp_path, 50257) is GPT2
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(written["vocab"]))
    merges = "".join(f"{a} {b}\n" for a, b in written["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    assert read_tokenizer(tmp_path, 50257) is GPT2


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_run_writes_the_same_greedy_text(transformers, micro, tmp_path, tied, capsys, monkeypatch):
    changes = {"model.tied": tied, "data.tokenizer": "bytes", "model.vocab_size": 256}
    run = run_attempt(micro.with_changes(changes), steps=20).run
    exported = export_run(run, str(tmp_path / "out"), None)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("The", return_tensors="pt")
    with torch.inference_mode():
        new = model.generate(**tokens, max_new_tokens=10, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    greedy = {"count": 1, "max_tokens": 10, "temperature": 0, "top_k": 0, "seed": 0}
    expected = sample(run, None, "The", **greedy).texts
    assert [tokenizer.decode(new)] == expected
    assert sample(tmp_path / "out", None, "The", **greedy).texts == expected
    ours = load_model(select_checkpoint(run.directory, None), run.record.spec.model)
    assert_equal_logits(ours, model)
    # The script of the card.
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("[!WARNING]" in card) == (not tied)
    assert ("lm_head.weight" in card) == (not tied)
    (script,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(script, {})  # noqa: S102 - the card tells the reader to run it
    assert float(capsys.readouterr().out) < 1e-5
    assert exported.reference.logits[0] != 0
    if not tied:  # what a reader that skips the output layer computes is found
        shutil.copytree("out", "skipped")
        config = json.loads(Path("skipped/config.json").read_text())
        Path("skipped/config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        wrong = transformers.GPT2LMHeadModel.from_pretrained("skipped", ignore_mismatched_sizes=True)
        wrong.lm_head.weight = wrong.transformer.wte.weight
        logits = wrong(torch.tensor([exported.reference.tokens])).logits[0, -1, : len(exported.reference.logits)]
        assert (logits - torch.tensor(exported.reference.logits)).abs().max() > 1e-3
