"""Cross-entropy on a GPU, in one pass over all logits.

The logits stay in the dtype of the matrix products, bfloat16, and one kernel turns them into their gradient in place.
So a logit is read twice and written once, and neither a float32 copy nor a log-softmax exists. Sums are in float32.

N is the number of tokens, C the width, V the vocabulary size, W ≥ V the width of a row of logits. Columns from V on are
padding, which has no probability and no gradient.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_BLOCK = 4096
"""Logits that a kernel's program reads at once."""


def mean_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Return the mean loss in nats, a float32 scalar that is differentiable with respect to `x` and `weight`.

    Args:
        x: `(N, C)`, the output layer's input.
        weight: `(W, C)`, the output layer's weight, in the dtype of `x`.
        targets: `(N,)`, integers below V.
        vocab_size: V.
    """
    # torch does not annotate `Function.apply`.
    loss: Tensor = _MeanCrossEntropy.apply(x, weight, targets, vocab_size)  # type: ignore[no-untyped-call]  # of torch
    return loss


def token_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Return the loss of each token in nats, float32 of shape `(N,)`, without a gradient. See `mean_cross_entropy`."""
    return _losses(x @ weight.t(), targets, vocab_size)


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        logits = x @ weight.t()  # (N, W)
        losses = _losses(logits, targets, vocab_size, gradient_scale=1 / len(x))
        ctx.save_for_backward(x, weight)
        ctx.grad_logits = logits
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        grad_logits = ctx.grad_logits
        del ctx.grad_logits  # by far the largest tensor
        grad_output = grad_output.to(x.dtype)
        return (grad_logits @ weight) * grad_output, grad_logits.t() @ (x * grad_output), None, None


def _losses(logits: Tensor, targets: Tensor, vocab_size: int, gradient_scale: float | None = None) -> Tensor:
    """Return the losses `(N,)` of logits `(N, W)`.

    With `gradient_scale`, the logits become the gradient of that multiple of the losses' sum.
    """
    N, W = logits.shape
    losses = torch.empty(N, dtype=torch.float32, device=logits.device)
    block = min(triton.next_power_of_2(W), MAX_BLOCK)
    _cross_entropy[N,](
        logits,
        targets,
        losses,
        W,
        vocab_size,
        gradient_scale or 0.0,
        WITH_GRADIENT=gradient_scale is not None,
        BLOCK=block,
        num_warps=8,
    )
    return losses


@triton.jit  # type: ignore[untyped-decorator]  # Triton does not annotate it
def _cross_entropy(
    logits: Any,
    targets: Any,
    losses: Any,
    W: Any,
    V: Any,
    scale: Any,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Compute the loss of one row of logits and, in place, the gradient of `scale` times the loss.

    Each lane keeps the largest logit of its columns and a sum of exponentials relative to it, so that the first pass
    reads every logit once (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
    """
    row = tl.program_id(0).to(tl.int64)  # N · W exceeds 32 bits
    logits += row * W
    target = tl.load(targets + row)
    target_logit = tl.load(logits + target).to(tl.float32)  # before the second pass overwrites it
    columns = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        inside = first + columns < V
        logit = tl.load(logits + first + columns, mask=inside, other=-float("inf")).to(tl.float32)
        new_largest = tl.maximum(largest, logit)
        total = tl.where(inside, total * tl.exp(largest - new_largest) + tl.exp(logit - new_largest), total)
        largest = new_largest
    maximum = tl.max(largest, 0)
    log_sum = maximum + tl.log(tl.sum(total * tl.exp(largest - maximum), 0))
    tl.store(losses + row, log_sum - target_logit)
    if WITH_GRADIENT:
        for first in range(0, W, BLOCK):
            column = first + columns
            logit = tl.load(logits + column, mask=column < V, other=-float("inf")).to(tl.float32)
            gradient = (tl.exp(logit - log_sum) - tl.where(column == target, 1.0, 0.0)) * scale
            tl.store(logits + column, gradient.to(logits.dtype.element_ty), mask=column < W)
