"""The chunked cross-entropy beside the plain one, and beside float64."""

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


def drawn(N, C, V, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=generator) * scale
    weight = torch.randn(V, C, generator=generator)
    return x, weight, torch.randint(V, (N,), generator=generator)


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets)


def with_gradients(function, x, weight, targets, upstream=1.0):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    value = function(x, weight, targets)
    (value * upstream).backward()
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
    upstream=st.sampled_from([1.0, -2.5, 0.0]),
    seed=st.integers(0, 2**20),
)
def test_losses_and_gradients_are_the_plain_ones_however_they_are_cut(N, C, V, chunk, block, multiple, upstream, seed):
    x, weight, targets = drawn(N, C, V, seed)
    reference = with_gradients(plain, x.double(), weight.double(), targets, upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_ON_CPU", chunk)
        patch.setattr(loss, "BLOCK_ON_CPU", block)
        patch.setattr(loss, "MULTIPLE_ON_CPU", multiple)
        assert len(loss._padded(weight)) % multiple == 0
        for exact, bound in ((True, 1e-12), (False, 1e-5)):
            inputs = (x.double(), weight.double()) if exact else (x, weight)
            found = with_gradients(mean_cross_entropy, *inputs, targets, upstream)
            for ours, right in zip(found, reference, strict=True):
                assert torch.allclose(ours.double(), right, rtol=bound, atol=bound)
        tokens = F.cross_entropy(F.linear(x.double(), weight.double()), targets, reduction="none")
        assert torch.allclose(token_cross_entropy(x, weight, targets).double(), tokens, rtol=1e-5, atol=1e-5)


def test_float32_is_as_near_to_float64_as_the_plain_loss_at_the_real_vocabulary():
    x, weight, targets = drawn(300, 64, 50257)
    reference = with_gradients(plain, x.double(), weight.double(), targets)
    ours = with_gradients(mean_cross_entropy, x, weight, targets)
    theirs = with_gradients(plain, x, weight, targets)
    for mine, their, right in zip(ours, theirs, reference, strict=True):
        assert error(mine, right) < 2 * error(their, right) + 1e-7


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_a_target_whose_probability_underflows_has_its_true_loss(scale):
    x, weight, targets = drawn(50, 16, 500, scale=scale)
    right = F.cross_entropy(F.linear(x.double(), weight.double()), targets, reduction="none")
    assert right.max() > 100  # exp(-100) is no float32
    assert torch.allclose(token_cross_entropy(x, weight, targets).double(), right, rtol=1e-5, atol=1e-4)


def test_what_is_not_finite_stays_so():
    x, weight, targets = drawn(5, 4, 9)
    x[2, 1] = torch.nan
    assert torch.isnan(token_cross_entropy(x, weight, targets)).tolist() == [False, False, True, False, False]
    value, by_x, by_weight = with_gradients(mean_cross_entropy, x, weight, targets)
    assert torch.isnan(value)
    assert torch.isnan(by_x).any()
    assert torch.isnan(by_weight).all()


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    x, weight, targets = drawn(600, 32, 1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = with_gradients(mean_cross_entropy, x, weight, targets)
        theirs = with_gradients(plain, x, weight, targets)
        assert token_cross_entropy(x, weight, targets).dtype == torch.float32
    reference = with_gradients(plain, x.double(), weight.double(), targets)
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 3
    for mine, their, right in zip(ours, theirs, reference, strict=True):
        assert 1e-5 < error(mine, right) < 1.2 * error(their.float(), right)


def test_autograd_keeps_the_gradients_and_copies_none():
    x, weight, targets = drawn(10, 4, 9)
    x.requires_grad_()
    weight.requires_grad_()
    value = mean_cross_entropy(x, weight, targets)
    made = value.grad_fn.gradients[1].data_ptr()
    value.backward()
    assert weight.grad.data_ptr() == made


def test_tied_weights_get_both_gradients():
    spec = ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=16, tied=True)
    model = gpt.build(spec, seed=0).double()
    tokens = torch.arange(12).view(1, 12)
    model(tokens, tokens.flip(1)).backward()
    ours = model.token_embedding.weight.grad.clone()
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flip(1).flatten()).backward()
    assert torch.allclose(ours, model.token_embedding.weight.grad, rtol=1e-9, atol=1e-12)


def test_gelu_computed_again_changes_no_bit(monkeypatch):
    spec = ModelSpec(n_layer=2, n_head=2, n_embd=16, context_length=16)
    tokens = torch.arange(24).view(2, 12)

    def gradients():
        model = gpt.build(spec, seed=0)
        model(tokens, tokens).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    kept_less = gradients()
    monkeypatch.setattr(gpt, "_gelu_computed_again", lambda *_: gpt.nullcontext())
    kept_all = gradients()
    assert all(torch.equal(kept_all[name], kept_less[name]) for name in kept_all)


def test_gelus_output_is_not_kept_for_backward(monkeypatch):
    feed_forward = (
        gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=16, context_length=64), seed=0).blocks[0].feed_forward
    )
    made = []
    gelu = F.gelu

    def watched(*inputs, **options):
        output = gelu(*inputs, **options)
        made.append(output.untyped_storage()._weak_ref())
        return output

    monkeypatch.setattr(F, "gelu", watched)
    y = feed_forward(torch.randn(1, 8, 16, requires_grad=True))
    (output,) = made
    assert torch.UntypedStorage._expired(output)
    y.sum().backward()
    assert len(made) == 2


MEMORY = """
import resource, sys, torch
from gptlab.model.loss import mean_cross_entropy
x, w = torch.randn(4096, 16, requires_grad=True), torch.randn(50257, 16, requires_grad=True)
t = torch.randint(50257, (4096,))
mean_cross_entropy(x[:8], w, t[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mean_cross_entropy(x, w, t).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_no_more_logits_than_a_chunks_are_ever_there():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    everything = 4096 * 50257 * 4 / 2**20  # 785 MiB
    assert float(done.stdout) < everything / 8
