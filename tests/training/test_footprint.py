"""The predicted memory is that of real runs, and the formulas follow the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptlab.model import parts
from gptlab.model.measure import size_of
from gptlab.spec import Experiment, ModelSpec
from gptlab.training.footprint import FLOAT32, Layout, block_activations, footprint

ROOT = Path(__file__).parents[2]
CPU = Layout("cpu", "float32")


def shape(tokenizer: str, B: int, T: int, C: int, **model: object) -> dict[str, object]:
    vocab_size = 256 if tokenizer == "bytes" else 50_257
    fields = {"n_embd": C, "n_head": max(C // 64, 1), "context_length": T, "vocab_size": vocab_size, **model}
    changes = {f"model.{name}": value for name, value in fields.items()}
    return {**changes, "data.tokenizer": tokenizer, "train.batch_size": B, "train.sequence_length": T}


SHAPES = {
    "wide": shape("bytes", 1, 32, 768, n_layer=2),
    "long": shape("bytes", 1, 1024, 64, n_layer=16, n_head=1),
    "many sequences": shape("bytes", 64, 64, 64, n_layer=8),
    "large vocabulary, tied": shape("gpt2", 1, 32, 256, n_layer=1, tied=True),
}
EVERY_ACTIVATION = ["gelu", "gelu-exact", "relu", "relu2", "silu"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_predicted_memory_and_checkpoints_are_those_of_real_runs(text_file, tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "peaks.py"), str(text_file), json.dumps(SHAPES)]
    # Each thread has a heap of its own, whose size differs by a tenth of these small peaks from run to run.
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == SHAPES.keys()
    ratios = {name: one["predicted"] / one["measured"] for name, one in found.items()}
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), ratios
    for one in found.values():
        assert one["files"].keys() == one["predicted_files"].keys()
        for name, size in one["files"].items():
            assert one["predicted_files"][name] == pytest.approx(size, rel=0.01)


def kept_by(spec: ModelSpec, B: int, T: int, bfloat16: bool) -> int:
    """Bytes that a block of the model keeps for its backward pass, without its weights and copies of them."""
    block = parts.block(spec, 0)
    shapes = {tuple(sorted(parameter.shape)) for parameter in block.parameters()}
    storages: dict[int, int] = {}
    held = []

    def keep_input(module: object, inputs: object, output: Tensor) -> None:
        """The activation's input, which its recomputation needs, whatever its own backward pass needs."""
        keep(output)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tuple(sorted(tensor.shape)) not in shapes:
            storages[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    block.feed_forward.expansion.register_forward_hook(keep_input)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            block(torch.randn(B, T, spec.n_embd, requires_grad=True))
    return sum(storages.values())


@pytest.mark.parametrize("activation", EVERY_ACTIVATION)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_keeps_what_the_formula_says(activation, precision):
    B, T = 2, 24
    for bias, dropout in ((True, 0.0), (False, 0.0), (True, 0.1)):
        spec = ModelSpec(n_layer=1, n_head=4, n_embd=64, context_length=T, bias=bias, dropout=dropout)
        spec = spec.model_copy(update={"activation": activation})
        if dropout and precision == "bfloat16":
            continue  # an estimate: PyTorch mixes precisions there
        predicted = block_activations(spec, Layout("cpu", precision), T)
        assert predicted * B * T == kept_by(spec, B, T, precision == "bfloat16"), (bias, dropout)


def test_all_activations_of_the_spec_are_tried():
    from gptlab.part_names import BUILT_IN

    assert set(EVERY_ACTIVATION) == set(BUILT_IN["model.activation"])


def experiment(**changes: object) -> Experiment:
    return Experiment(name="one", why="?").with_changes({"train.batch_size": 8, **changes})


def test_weights_and_moments_follow_the_number_of_parameters():
    one = experiment()
    needs = footprint(one, CPU)
    parameters = size_of(one).parameters
    assert parameters == 163_037_184
    assert needs.peak["weights"] == FLOAT32 * parameters
    assert needs.peak["moments"] == 2 * FLOAT32 * parameters
    assert needs.peak["gradients"] == FLOAT32 * parameters
    assert needs.total == sum(needs.peak.values())


def test_sharding_divides_the_state_and_ddp_does_not():
    one = experiment()
    weights = footprint(one, CPU).peak["weights"]
    replicated, sharded = (
        footprint(one, Layout("cuda", "bfloat16", 8, shard)).phases["loss"] for shard in (False, True)
    )
    assert replicated["weights"] == replicated["DDP's buckets"] == weights
    assert sharded["weights"] == weights // 8
    assert sharded["moments"] == weights // 4
    assert sharded["gathered weights"] < weights


def test_traffic_is_that_of_rings():
    one = experiment()
    weights = footprint(one, CPU).peak["weights"]
    assert footprint(one, CPU).sent == 0
    assert footprint(one, Layout("cuda", "bfloat16", 2)).sent == weights  # half of it twice
    assert footprint(one, Layout("cuda", "bfloat16", 8)).sent == 7 * 2 * weights // 8
    sharded = footprint(one, Layout("cuda", "bfloat16", 8, shard=True)).sent
    assert 2 * 7 * weights // 8 < sharded < 3 * 7 * weights // 8  # what is in no block is gathered once


def test_a_device_has_only_its_own_sequences():
    one = experiment()
    alone, shared = (footprint(one, Layout("cuda", "bfloat16", count)).phases["loss"] for count in (1, 8))
    assert shared["activations"] * 8 == alone["activations"]


def test_what_parts_change_is_named_and_not_guessed():
    needs = footprint(experiment(**{"model.norm": "experiments.parts.rms_norm:RMSNorm"}), CPU)
    assert any("experiments.parts.rms_norm:RMSNorm" in what for what in needs.not_included)
    assert "activations" not in needs.peak or needs.phases["loss"]["activations"] == 0
    needs = footprint(experiment(**{"train.optimizer": "experiments.parts.lion:lion"}), CPU)
    assert any("experiments.parts.lion:lion" in what for what in needs.not_included)
    assert needs.optimizer_file is None
    assert needs.peak["moments"] == 0
