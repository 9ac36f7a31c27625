"""The loss of the GPU, executed on the CPU by Triton's interpreter."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptlab import compiler
from gptlab.model import loss

pytest.importorskip("triton", reason="Triton has no build for this system")
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("the kernel is compiled here; tests/gpu tests it", allow_module_level=True)

from gptlab.model import fused_loss

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # of lanes that are masked


def inputs(tokens: int, width: int, vocab_size: int, padding: int, dtype: torch.dtype, seed: int = 0):
    """Input and weight of the output layer, with padding of zeros, and targets."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).to(dtype)
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    return x, F.pad(weight, (0, 0, 0, padding)).requires_grad_(), targets


def reference(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, *, rounded: bool):
    """Loss and gradients in float64; `rounded` logits are those of the dtype of `x`."""
    wide_x, wide_weight = (each.detach().double().requires_grad_() for each in (x, weight))
    logits = wide_x @ wide_weight.t()
    if rounded:
        logits = logits + ((x @ weight.t()).double() - logits).detach()
    mean = F.cross_entropy(logits[:, :vocab_size], targets)
    mean.backward()
    return mean.detach(), wide_x.grad, wide_weight.grad


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@settings(max_examples=settings.default.max_examples // 8)
@given(
    tokens=st.integers(1, 9),
    width=st.integers(1, 40),
    vocab_size=st.integers(1, 300),
    padding=st.integers(0, 70),
    block=st.sampled_from([16, 64, 4096]),
    seed=st.integers(0, 2**32 - 1),
)
def test_loss_and_gradients_are_those_in_float64(tokens, width, vocab_size, padding, block, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_loss, "MAX_BLOCK", block)
        x, weight, targets = inputs(tokens, width, vocab_size, padding, torch.float32, seed)
        mean = fused_loss.mean_cross_entropy(x, weight, targets, vocab_size)
        mean.backward()
    expected, grad_x, grad_weight = reference(x, weight, targets, vocab_size, rounded=False)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(x.grad.double(), grad_x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), grad_weight, rtol=1e-4, atol=1e-5)
    assert not weight.grad[vocab_size:].any()


def test_in_bfloat16_only_rounding_differs():
    x, weight, targets = inputs(16, 64, 1000, 24, torch.bfloat16)
    mean = fused_loss.mean_cross_entropy(x, weight, targets, 1000)
    mean.backward()
    expected, grad_x, grad_weight = reference(x, weight, targets, 1000, rounded=True)
    assert mean.dtype == torch.float32
    assert abs(mean.item() - expected.item()) < 1e-5  # sums are in float32; only the logits are rounded
    assert relative_error(x.grad, grad_x) < 2**-7
    assert relative_error(weight.grad, grad_weight) < 2**-7


def test_losses_of_tokens_are_the_terms_of_the_mean():
    x, weight, targets = inputs(7, 8, 500, 12, torch.float32)
    with torch.no_grad():
        losses = fused_loss.token_cross_entropy(x, weight, targets, 500)
    expected = F.cross_entropy((x @ weight.t())[:, :500], targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(fused_loss.mean_cross_entropy(x, weight, targets, 500), losses.mean())


def test_the_gradient_is_multiplied_by_that_of_the_output():
    x, weight, targets = inputs(3, 8, 50, 0, torch.float32)
    fused_loss.mean_cross_entropy(x, weight, targets, 50).backward()
    once = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    (fused_loss.mean_cross_entropy(x, weight, targets, 50) * 2).backward()
    torch.testing.assert_close((x.grad, weight.grad), (once[0] * 2, once[1] * 2))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_input_that_is_not_finite_gives_a_loss_that_is_not_finite(value):
    x, weight, targets = inputs(3, 8, 50, 14, torch.float32)
    with torch.no_grad():
        x[1, 2] = value
        losses = fused_loss.token_cross_entropy(x, weight, targets, 50)
    assert losses.isfinite().tolist() == [True, False, True]


def test_a_large_loss_does_not_underflow():
    x, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert fused_loss.token_cross_entropy(x, weight, torch.tensor([1]), 2).tolist() == [400.0]


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The output layer's loss takes the path of CUDA under autocast, with the interpreted kernel."""
    monkeypatch.setattr(loss, "uses_kernel", lambda device: torch.is_autocast_enabled(device))
    monkeypatch.setattr(loss, "MULTIPLE_ON_CPU", loss.MULTIPLE)
    monkeypatch.setattr(loss, "CHUNK", 5)


def test_the_model_has_the_loss_and_gradients_of_the_other_implementation(small, tokens, as_on_cuda, monkeypatch):
    gradients, losses, per_token = [], [], []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(loss, "uses_kernel", lambda device: False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = small(tokens[:, :-1], tokens[:, 1:])
            with torch.no_grad():
                per_token.append(small(tokens[:, :-1], tokens[:, 1:], reduction="none"))
        mean.backward()
        losses.append(mean.item())
        gradients.append({name: parameter.grad for name, parameter in small.named_parameters()})
        small.zero_grad(set_to_none=True)
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0] != losses[1]  # the kernel was used: its logits are rounded
    assert relative_error(*per_token) < 2e-3
    for name, gradient in gradients[0].items():
        assert relative_error(gradient, gradients[1][name]) < 0.03, name


def test_the_kernel_is_used_on_cuda_where_it_can_be_compiled(monkeypatch):
    enabled = {"cuda": True, "cpu": True}
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: enabled[device])
    monkeypatch.setattr(compiler, "missing", lambda device: None)
    assert loss.uses_kernel("cuda")
    assert not loss.uses_kernel("cpu")
    monkeypatch.setattr(compiler, "missing", lambda device: "a compiler")
    assert not loss.uses_kernel("cuda")
    monkeypatch.setattr(compiler, "missing", lambda device: None)
    enabled["cuda"] = False
    assert not loss.uses_kernel("cuda")
