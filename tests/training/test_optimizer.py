import math
import subprocess
import sys

import pytest
import torch

from gptlab.model.gpt import build as build_model
from gptlab.spec import ModelSpec, TrainSpec
from gptlab.training import optimizer


@pytest.fixture
def model(micro):
    return build_model(micro.model, seed=0)


def trained(model, micro):
    adamw = optimizer.build(model, micro.train, fused=True)
    tokens = torch.arange(33).view(1, 33)
    model(tokens[:, :16], tokens[:, 1:17]).backward()
    adamw.step()
    return adamw


def test_weight_decay_reaches_matrices_only(model, micro):
    decayed, plain = optimizer.build(model, micro.train, fused=True).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_spec_sets_the_hyperparameters(model, micro):
    spec = micro.with_changes({"train.learning_rate": 0.5, "train.betas": [0.1, 0.2], "train.eps": 0.3}).train
    for group in optimizer.build(model, spec, fused=True).param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.5, (0.1, 0.2), 0.3, True)


def test_state_tensors_are_named_after_the_parameters(model, micro):
    tensors = optimizer.state_tensors(model, trained(model, micro))
    names = [name for name, _ in model.named_parameters()]
    assert set(tensors) == {f"{name}/{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}


def test_loaded_state_equals_the_saved_state_without_a_copy(model, micro):
    saved = optimizer.state_tensors(model, trained(model, micro))
    source = {name: tensor.clone() for name, tensor in saved.items()}
    fresh = optimizer.build(model, micro.train, fused=True)
    optimizer.load_state_tensors(model, fresh, source)
    loaded = optimizer.state_tensors(model, fresh)
    assert loaded.keys() == saved.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, saved[name])
        assert tensor.data_ptr() == source[name].data_ptr()


def test_missing_state_is_an_error(model, micro):
    tensors = optimizer.state_tensors(model, trained(model, micro))
    del tensors["final_norm.bias/exp_avg"]
    with pytest.raises(KeyError, match="final_norm.bias/exp_avg"):
        optimizer.load_state_tensors(model, optimizer.build(model, micro.train, fused=True), tensors)


def test_norm_of_a_large_gradient_is_right_although_one_float32_sum_is_not():
    spec = ModelSpec(n_layer=1, n_head=1, n_embd=256, context_length=8)
    model = build_model(spec, seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim))
    right = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters()))
    assert float(optimizer.gradient_norm(model)) == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.01, 1e9, math.inf])
def test_clipped_update_equals_clipping_and_then_a_step(fused, max_norm):
    spec = ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=8)
    ours, theirs = build_model(spec, seed=0), build_model(spec, seed=0)
    mine = optimizer.build(ours, TrainSpec(), fused=fused)
    plain = optimizer.build(theirs, TrainSpec(), fused=fused)
    tokens = torch.arange(8).view(1, 8)
    for _ in range(3):
        ours(tokens, tokens).backward()
        theirs(tokens, tokens).backward()
        optimizer.clipped_update(mine, optimizer.gradient_norm(ours), max_norm)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        plain.step()
        plain.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(parameter, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_equals_torchs_to_the_bit(fused):
    spec = ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=8)
    ours, theirs = build_model(spec, seed=0), build_model(spec, seed=0)
    mine = optimizer.build(ours, TrainSpec(), fused=fused)
    torchs = torch.optim.AdamW(optimizer.build(theirs, TrainSpec(), fused=fused).param_groups, fused=fused)
    tokens = torch.arange(8).view(1, 8)
    for _ in range(3):
        for model, adamw in ((ours, mine), (theirs, torchs)):
            model(tokens, tokens).backward()
            adamw.step()
            adamw.zero_grad()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, other)


UPDATE = """
import sys, torch
from gptlab.model import gpt
from gptlab.spec import ModelSpec, TrainSpec
from gptlab.training import optimizer
model = gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=8), seed=0)
for fused in (True, False):
    adamw = optimizer.build(model, TrainSpec(), fused=fused)
    tokens = torch.arange(8).view(1, 8)
    model(tokens, tokens).backward()
    optimizer.clipped_update(adamw, optimizer.gradient_norm(model), 1.0)
    optimizer.load_state_tensors(model, adamw, optimizer.state_tensors(model, adamw))
assert "torch._dynamo" not in sys.modules, "torch imported its compiler"
"""


@pytest.mark.slow
def test_update_does_not_import_the_compiler():
    """In a new process, because other tests may have imported the compiler."""
    done = subprocess.run([sys.executable, "-c", UPDATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
