"""The compiled kernel of the loss, against float64."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.model import loss
from gptlab.model.loss import mean_cross_entropy, token_cross_entropy


def problem(tokens: int, vocab_size: int, width: int = 64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).cuda().requires_grad_()
    weight = (0.1 * torch.randn(vocab_size, width, generator=generator)).cuda().requires_grad_()
    return x, weight, torch.randint(vocab_size, (tokens,), generator=generator).cuda()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("tokens", "vocab_size"), [(1, 1), (5, 257), (400, 50_257), (8192, 50_257), (300, 4096)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loss_and_gradients_are_those_in_float64(device, tokens, vocab_size, dtype):
    x, weight, targets = problem(tokens, vocab_size)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert loss.uses_kernel("cuda") == (dtype == torch.bfloat16)
        mean = mean_cross_entropy(x, weight, targets)
        losses = token_cross_entropy(x, weight, targets)
    mean.backward()
    wide_x, wide_weight = (each.detach().to(dtype).double().requires_grad_() for each in (x, weight))
    expected = F.cross_entropy(wide_x @ wide_weight.t(), targets, reduction="none")
    expected.mean().backward()
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-3
    assert mean.dtype == losses.dtype == torch.float32
    assert abs(mean.item() - expected.mean().item()) < tolerance
    assert (losses.double() - expected).abs().max() < 5 * tolerance
    if vocab_size > 1:
        assert relative_error(x.grad, wide_x.grad) < tolerance
        assert relative_error(weight.grad, wide_weight.grad) < tolerance


def test_the_gradient_is_formed_in_place(device):
    x, weight, targets = problem(8192, 50_257)
    logits = 8192 * 50_304 * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        mean_cross_entropy(x, weight, targets).backward()
    assert torch.cuda.max_memory_allocated() - before < 1.5 * logits
