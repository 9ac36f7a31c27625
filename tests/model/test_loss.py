"""The chunked cross-entropy agrees with the plain one and with float64."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.model import gpt, loss
from gptlab.model.loss import mean_cross_entropy, token_cross_entropy
from gptlab.spec import ModelSpec


def inputs(N, C, V, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=generator) * scale
    weight = torch.randn(V, C, generator=generator)
    return x, weight, torch.randint(V, (N,), generator=generator)


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets)


def with_gradients(function, x, weight, targets, grad_output=1.0):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    value = function(x, weight, targets)
    (value * grad_output).backward()
    return value.detach(), x.grad, weight.grad


def error(tensor, reference):
    return float((tensor - reference).norm() / reference.norm())


@settings(deadline=None)
@given(
    N=st.integers(1, 40),
    C=st.integers(1, 9),
    V=st.integers(2, 70),
    chunk=st.integers(1, 41),
    block=st.integers(1, 71),
    multiple=st.sampled_from([1, 8, 64]),
    grad_output=st.sampled_from([1.0, -2.5, 0.0]),
    seed=st.integers(0, 2**20),
)
def test_losses_and_gradients_equal_the_plain_ones_for_any_chunks(N, C, V, chunk, block, multiple, grad_output, seed):
    x, weight, targets = inputs(N, C, V, seed)
    reference = with_gradients(plain, x.double(), weight.double(), targets, grad_output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_ON_CPU", chunk)
        patch.setattr(loss, "BLOCK_ON_CPU", block)
        patch.setattr(loss, "MULTIPLE_ON_CPU", multiple)
        assert len(loss._pad_rows(weight)) % multiple == 0
        for exact, bound in ((True, 1e-12), (False, 1e-5)):
            tensors = (x.double(), weight.double()) if exact else (x, weight)
            found = with_gradients(mean_cross_entropy, *tensors, targets, grad_output)
            for ours, right in zip(found, reference, strict=True):
                assert torch.allclose(ours.double(), right, rtol=bound, atol=bound)
        tokens = F.cross_entropy(F.linear(x.double(), weight.double()), targets, reduction="none")
        assert torch.allclose(token_cross_entropy(x, weight, targets).double(), tokens, rtol=1e-5, atol=1e-5)


def test_float32_is_as_close_to_float64_as_the_plain_loss_with_the_real_vocabulary():
    x, weight, targets = inputs(300, 64, 50257)
    reference = with_gradients(plain, x.double(), weight.double(), targets)
    ours = with_gradients(mean_cross_entropy, x, weight, targets)
    theirs = with_gradients(plain, x, weight, targets)
    for mine, their, right in zip(ours, theirs, reference, strict=True):
        assert error(mine, right) < 2 * error(their, right) + 1e-7


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_loss_is_accurate_if_the_probability_underflows(scale):
    x, weight, targets = inputs(50, 16, 500, scale=scale)
    right = F.cross_entropy(F.linear(x.double(), weight.double()), targets, reduction="none")
    assert right.max() > 100  # exp(-100) underflows in float32
    assert torch.allclose(token_cross_entropy(x, weight, targets).double(), right, rtol=1e-5, atol=1e-4)


def test_nan_inputs_give_nan_losses_and_gradients():
    x, weight, targets = inputs(5, 4, 9)
    x[2, 1] = torch.nan
    assert torch.isnan(token_cross_entropy(x, weight, targets)).tolist() == [False, False, True, False, False]
    value, grad_x, grad_weight = with_gradients(mean_cross_entropy, x, weight, targets)
    assert torch.isnan(value)
    assert torch.isnan(grad_x).any()
    assert torch.isnan(grad_weight).all()


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    x, weight, targets = inputs(600, 32, 1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = with_gradients(mean_cross_entropy, x, weight, targets)
        theirs = with_gradients(plain, x, weight, targets)
        assert token_cross_entropy(x, weight, targets).dtype == torch.float32
    reference = with_gradients(plain, x.double(), weight.double(), targets)
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 3
    for mine, their, right in zip(ours, theirs, reference, strict=True):
        assert 1e-5 < error(mine, right) < 1.2 * error(their.float(), right)


def test_autograd_uses_the_computed_gradients_without_a_copy():
    x, weight, targets = inputs(10, 4, 9)
    x.requires_grad_()
    weight.requires_grad_()
    value = mean_cross_entropy(x, weight, targets)
    computed = value.grad_fn.gradients[1].data_ptr()
    value.backward()
    assert weight.grad.data_ptr() == computed


def test_gradient_of_a_tied_weight_is_the_sum_over_both_uses():
    spec = ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=16, tied=True)
    model = gpt.build(spec, seed=0).double()
    tokens = torch.arange(12).view(1, 12)
    model(tokens, tokens.flip(1)).backward()
    ours = model.token_embedding.weight.grad.clone()
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flip(1).flatten()).backward()
    assert torch.allclose(ours, model.token_embedding.weight.grad, rtol=1e-9, atol=1e-12)


MEMORY = """
import resource, sys, torch
from gptlab.model.loss import mean_cross_entropy
torch.manual_seed(0)
x, w = torch.randn(4096, 16, requires_grad=True), torch.randn(50257, 16, requires_grad=True)
t = torch.randint(50257, (4096,))
mean_cross_entropy(x[:8], w, t[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mean_cross_entropy(x, w, t).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_logits_of_one_chunk():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    all_logits = 4096 * 50257 * 4 / 2**20  # 785 MiB
    assert float(done.stdout) < all_logits / 8
