"""Warm starts, evaluation and samples from a directory of `transformers`, and directories that are refused."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import run_attempt

from gptlab import catalog
from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.commands.evaluate import evaluate_directory, evaluate_run
from gptlab.commands.export import export_run
from gptlab.commands.run import Options, resume_run
from gptlab.commands.sample import sample
from gptlab.data.vocabularies import GPT2
from gptlab.errors import BadInputError, GptlabError
from gptlab.huggingface import export
from gptlab.huggingface.directory import load_directory
from gptlab.huggingface.tokenizer_files import tokenizer_files
from gptlab.model.measure import size_of
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.records import ImportedWeights, RunRecord
from gptlab.tracking.run import Run, load_run
from gptlab.training.initial import find_start
from gptlab.verification.verify import verify_run

WEIGHTS = "model.safetensors"
GREEDY = {"count": 1, "max_tokens": 6, "temperature": 0, "top_k": 0, "seed": 0}


@pytest.fixture(scope="module")
def micro(micro) -> Experiment:
    """With the bytes as tokens, whose file is read quickly."""
    return micro.with_changes({"data.tokenizer": "bytes", "model.vocab_size": 256})


@pytest.fixture(scope="module")
def trained(micro, cache, tmp_path_factory) -> tuple[Run, Path]:
    """A run and its export, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        patch.setenv("GPTLAB_CACHE", str(cache))
        run = run_attempt(micro, steps=20).run
        export_run(run, str(folder / "export"), None)
    return run, folder / "export"


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    """A copy of the export."""
    return Path(shutil.copytree(trained[1], tmp_path / "export"))


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, directory / WEIGHTS)


def message(call: Callable[[], object]) -> str:
    with pytest.raises(BadInputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_export_evaluates_and_samples_as_its_run(trained, directory, text_file):
    run, console = trained[0], Console(stderr=True)
    with pytest.raises(BadInputError, match="give one to evaluate on: --text FILE, or --string"):
        evaluate_directory(directory, text=None, device="cpu", console=console)
    string = "The model reads."  # one window of both
    found = evaluate_directory(directory, text=None, device="cpu", console=console, string=string)
    expected = evaluate_run(run, step=None, text=None, device="cpu", console=console, string=string)
    assert found.document() == expected.document() | {"run": str(directory), "step": None}
    # Windows of the whole context, 32 tokens; the run's have 16.
    found = evaluate_directory(directory, text=str(text_file), device="cpu", console=console)
    assert len(found.evaluation.window_losses) * 32 == found.evaluation.tokens
    assert not (directory / "evaluations").exists()
    assert sample(directory, None, "The", **GREEDY).texts == sample(run, None, "The", **GREEDY).texts


def test_a_run_starts_from_the_weights_of_a_directory(trained, directory, micro, monkeypatch):
    start = find_start(str(directory), micro.model)
    assert isinstance(start, ImportedWeights)
    assert start.sha256 == hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    result = run_attempt(micro, seed=1, steps=10, initial_weights=start)
    record = result.run.record
    assert record.identity["initial_weights_sha256"] == start.sha256
    assert record.run != run_attempt(micro, seed=1, steps=1).run.id
    assert load_run(result.run.directory).record.imported_weights == start
    # Its weights at step 0 are those of the export: the first validation is that of the run at its end.
    rows = [json.loads(line) for line in (result.run.directory / "metrics.jsonl").read_text().splitlines()]
    ends = [json.loads(line) for line in (trained[0].directory / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0
    assert rows[0]["val/loss"] == ends[-1]["val/loss"]
    # The directory is not needed once there is a checkpoint.
    shutil.rmtree(directory)
    resumed = resume_run(result.run, Options(steps=12, wandb="off"), Console(stderr=True))
    assert resumed.document()["step"] == 12
    gone = message(lambda: verify_run(result.run, console=Console(stderr=True)))
    answer = "is gone, whose weights the run starts from; restore it; verify from a checkpoint of the run itself: "
    assert gone == f"the directory {directory} {answer}--from 10"


def test_weights_that_changed_since_the_run_was_created_are_refused(directory, micro):
    start = find_start(str(directory), micro.model)
    change_weights(directory, lambda weights: weights["lm_head.weight"].add_(1))
    text = message(lambda: run_attempt(micro, steps=1, initial_weights=start))
    assert "have changed" in text


def test_the_record_of_other_runs_does_not_mention_imported_weights(trained):
    content = (trained[0].directory / "run.json").read_text()
    assert "imported" not in content
    assert "initial_weights_sha256" not in content
    assert RunRecord.model_validate_json(content).to_json() == content


def test_the_same_weights_in_shards_start_the_same_model(directory, micro, trained):
    weights = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    parts = [dict(list(weights.items())[half::2]) for half in (0, 1)]
    for number, part in enumerate(parts):
        save_file(part, directory / f"part-{number}.safetensors")
    files = {name: f"part-{number}.safetensors" for number, part in enumerate(parts) for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    start = find_start(str(directory), micro.model)
    content = b"".join((directory / f"part-{number}.safetensors").read_bytes() for number in (0, 1))
    assert start.sha256 == hashlib.sha256(content).hexdigest()
    run = trained[0]
    model = load_model(select_checkpoint(run.directory, None), run.record.spec.model)
    for name, weight in load_directory(directory).model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    (directory / "part-1.safetensors").unlink()
    assert "part-1.safetensors is missing" in message(lambda: find_start(str(directory), micro.model))
    (directory / "part-1.safetensors").symlink_to(directory / "part-0.safetensors")
    assert "not a regular file" in message(lambda: find_start(str(directory), micro.model))


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"model.n_layer": 1}, "model.n_layer is 1, not 2; use --set model.n_layer=2"),
        ({"model.n_head": 1, "model.tied": True}, "model.n_head is 1, not 2, model.tied is True, not False; use --set"),
        ({"model.bias": False}, "is a GPT-2, which has no model.bias=false"),
        ({"model.norm": "experiments.parts.rms_norm:RMSNorm"}, "which has no model.norm=experiments.parts.rms_norm"),
    ],
)
def test_a_spec_with_another_model_is_refused_and_the_difference_named(directory, micro, changes, answer):
    assert answer in message(lambda: find_start(str(directory), micro.with_changes(changes).model))


def test_another_tokenizer_is_refused(directory, micro):
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {"a": ord("b"), "b": ord("a")}
    path.write_text(json.dumps(content))
    start = find_start(str(directory), micro.model)
    assert "another tokenizer than 'bytes'" in message(lambda: run_attempt(micro, steps=1, initial_weights=start))


@pytest.mark.parametrize(
    ("changes", "answers"),
    [
        ({"model_type": "llama"}, ["model_type is llama, not gpt2"]),
        (
            {"activation_function": "gelu_fast", "layer_norm_epsilon": 1e-6, "n_inner": 100},
            ["activation_function is gelu_fast", "layer_norm_epsilon is 1e-06, not 1e-05", "n_inner is 100, not 32"],
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True, not False"]),
        ({"add_cross_attention": True, "scale_attn_weights": False}, ["add_cross_attention", "scale_attn_weights"]),
        ({"quantization_config": {"bits": 4}}, ["its weights are quantized"]),
        ({"n_layer": 10**9}, ["n_layer"]),
        ({"n_layer": "2"}, ["n_layer"]),
        ({"n_head": 3}, ["n_embd 8 is not divisible by n_head 3"]),
        ({"n_embd": 10**30}, ["n_embd"]),
        ({"vocab_size": 10}, ["vocab_size"]),
        ({"vocab_size": 300}, ["has transformer.wte.weight as [256, 8], but this model needs [300, 8]"]),
        ({"n_embd": 16}, ["has transformer.wpe.weight as [32, 8], but this model needs [32, 16]"]),
        ({"n_layer": 3}, ["has no tensor transformer.h.2.ln_1.weight"]),
        ({"n_layer": 1}, ["has a tensor transformer.h.1.attn.c_attn.bias, which this model does not have"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight and transformer.wte.weight with different values"]),
    ],
)
def test_a_configuration_that_gptlab_cannot_represent_is_refused_and_named(directory, changes, answers):
    change_config(directory, **changes)
    text = message(lambda: load_directory(directory))
    assert all(answer in text for answer in answers), text


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(directory):
    for name, content in tokenizer_files(GPT2, 32).items():
        (directory / name).write_bytes(content)
    assert "a tokenizer of 50,257 tokens, but a model of 256 embeddings" in message(lambda: load_directory(directory))
    (directory / "tokenizer.json").unlink()
    assert "256 embeddings are too few for GPT-2's tokenizer" in message(lambda: load_directory(directory))


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is damaged"),
        (lambda d: (d / "config.json").write_text(" " * (1 << 21)), "is longer than"),
        (lambda d: (d / WEIGHTS).unlink(), f"has no weights: neither {WEIGHTS} nor {WEIGHTS}.index.json"),
        (lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), "is pickled, and reading it could execute code"),
        (lambda d: (d / WEIGHTS).write_bytes(b"\xff" * 100), "is not a safetensors file"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1]), "is not a safetensors file"),
        (lambda d: change_weights(d, lambda w: w.update(extra=torch.zeros(2))), "has a tensor transformer.extra"),
        (
            lambda d: change_weights(d, lambda w: w.update({"lm_head.weight": w["lm_head.weight"].double()})),
            "as torch.float64, which float32 cannot hold exactly",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({"wte.weight": w["lm_head.weight"].clone()})),
            "has transformer.wte.weight twice",
        ),
        (lambda d: (d / "tokenizer.json").write_text("[]"), "cannot be used as a tokenizer"),
        (lambda d: (d / "tokenizer.json").write_text("[" * 100_000), "cannot be used as a tokenizer"),
    ],
)
def test_a_damaged_directory_is_refused_in_one_line(directory, damage, answer):
    damage(directory)
    assert answer in message(lambda: load_directory(directory))


@pytest.mark.parametrize("name", ["../part.safetensors", "/part.safetensors", "part.bin", "", "a/b.safetensors"])
def test_an_index_names_only_safetensors_files_beside_it(directory, name):
    (directory / WEIGHTS).unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "which is no safetensors file beside it" in message(lambda: load_directory(directory))


def test_masks_and_a_copy_of_a_tied_output_layer_are_ignored(directory):
    change_config(directory, tie_word_embeddings=True)

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
        weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    change_weights(directory, change)
    assert load_directory(directory).model.output is None


def test_a_model_that_gpt2_cannot_represent_is_not_exported(micro, tmp_path):
    parts = {
        "model.feed_forward": "experiments.parts.swiglu:SwiGLU",
        "model.norm": "experiments.parts.rms_norm:RMSNorm",
    }
    for changes, answer in (
        (parts, "model.feed_forward is the part experiments.parts.swiglu:SwiGLU, model.norm is the part"),
        ({"model.bias": False}, "model.bias is false, but GPT-2 has biases"),
    ):
        run = run_attempt(micro.with_changes(changes), steps=1).run
        assert answer in message(lambda run=run: export_run(run, str(tmp_path / "out"), None))
    assert not (tmp_path / "out").exists()


def test_an_export_appears_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    run, target = trained[0], tmp_path / "below" / "out"

    def fail(path: Path, content: bytes) -> None:
        assert not target.exists()
        raise GptlabError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_durably", fail)
        with pytest.raises(GptlabError, match="the disk is full"):
            export_run(run, str(target), None)
    assert list(target.parent.iterdir()) == []
    target.mkdir()
    exported = export_run(run, str(target), 10)  # an empty directory is fine
    assert (exported.step, exported.files) == (10, sorted(path.name for path in target.iterdir()))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert "exists and is not an empty directory; remove it, or choose another one" in message(
        lambda: export_run(run, str(target), None)
    )
    assert before == {path.name: path.read_bytes() for path in target.iterdir()}
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_sigterm_leaves_no_part_of_an_export(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write_durably", lambda path, content: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        export_run(trained[0], str(tmp_path / "out"), None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/proc/out", "x" * 250])
def test_a_directory_that_cannot_be_made_is_one_line(trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GptlabError, match="cannot be written: (No such|File name)"):
        export_run(trained[0], name, None)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_another_process_filled_meanwhile_is_left_alone(trained, tmp_path, monkeypatch):
    target, write = tmp_path / "out", export.write_durably

    def fill(path: Path, content: bytes) -> None:
        write(path, content)
        target.mkdir(exist_ok=True)
        (target / "theirs").touch()

    monkeypatch.setattr(export, "write_durably", fill)
    assert "exists and is not an empty directory" in message(lambda: export_run(trained[0], str(target), None))
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_card_has_the_facts_of_the_run(trained):
    run, directory = trained
    card = (directory / "README.md").read_text()
    record = run.record
    row = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    loss = f"{row['val/loss']:.4f} ± {row['val/loss_se']:.4f} nats/token"
    for fact in (record.run, record.spec.name, record.spec.why, record.text.sha256, loss, "| tokens seen | `640` |"):
        assert fact in card
    assert f"torch {torch.__version__}" in card


def test_the_sizes_of_gpt2_have_their_parameters():
    sizes = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}
    for size, parameters in sizes.items():
        experiment = catalog.find(f"gpt2-{size}")
        assert experiment.model.parameters == size_of(experiment).parameters == parameters
        assert f"{parameters:,} parameters" in experiment.why
        assert (experiment.model.context_length, experiment.model.vocab_size) == (1024, 50257)
        assert experiment.model.tied
