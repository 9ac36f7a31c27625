"""Cross-entropy of the output layer, computed without holding all logits at once.

Logits are by far the largest tensor in training: 412 MB at 2 × 1024 tokens, and a plain loss also holds their
log-softmax and their gradient. This loss processes the tokens in chunks and computes the gradients with respect to the
output layer's input and weight in the forward pass, while a chunk's logits are in the CPU's caches (the idea of Liger
Kernel, Hsu et al. 2024, section 3.2; Cut Cross-Entropy, Wijmans et al. 2024, goes further). The backward pass only
scales these gradients. On CUDA in bfloat16 another implementation is faster, `gptlab.model.fused_loss`.

N is the number of tokens, C the width, V the vocabulary size, n the number of tokens in a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptlab import compiler

CHUNK, CHUNK_ON_CPU = 4096, 256
"""Tokens per chunk."""
ALIGNMENT = 64
"""Rows of logits start at multiples of this many elements. Unaligned rows, as with a vocabulary of 50,257, make the
matrix products that write and read them 1.5 times as slow."""
MULTIPLE, MULTIPLE_ON_CPU = 64, 1
"""In matrix products the output layer's weight is padded with zeros to a multiple of this many rows, which tensor cores
need to be fast."""
BLOCK_ON_CPU = 2048
"""Rows of the output layer's weight per matrix product: one product for all rows takes a third longer on a CPU."""
UNDERFLOW = 80.0
"""Losses above this, in nats, are computed from logits, because the target's probability is about to underflow."""


def mean_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `token_cross_entropy`, a scalar that is differentiable with respect to `x` and `weight`."""
    if not torch.is_grad_enabled():
        return token_cross_entropy(x, weight, targets).mean()
    if uses_kernel(x.device.type):
        from gptlab.model import fused_loss

        x, padded = _to_matmul_dtype(x), _pad_rows(_to_matmul_dtype(weight))
        return fused_loss.mean_cross_entropy(x, padded, targets, len(weight))
    # torch does not annotate `Function.apply`.
    loss: Tensor = _MeanCrossEntropy.apply(x, weight, targets)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return loss


@torch.no_grad()
def token_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return per-token losses in nats, in float32 or wider, without a gradient.

    Args:
        x: `(N, C)`, the output layer's input.
        weight: `(V, C)`, the output layer's weight.
        targets: `(N,)`, integers below V.

    Returns:
        `(N,)`.
    """
    V = len(weight)
    x, weight = _to_matmul_dtype(x), _pad_rows(_to_matmul_dtype(weight))
    if uses_kernel(x.device.type):
        from gptlab.model import fused_loss

        chunks = zip(torch.split(x, CHUNK), torch.split(targets, CHUNK), strict=True)
        return torch.cat([fused_loss.token_cross_entropy(chunk, weight, target, V) for chunk, target in chunks])
    logits = _logits_buffer(x, weight)
    chunks = zip(torch.split(x, len(logits)), torch.split(targets, len(logits)), strict=True)
    return torch.cat([_losses_and_probabilities(chunk, weight, target, logits, V)[0] for chunk, target in chunks])


def uses_kernel(device: str) -> bool:
    """Return whether the loss is computed by the kernel of `fused_loss`: on CUDA, in autocast's dtype."""
    return device == "cuda" and torch.is_autocast_enabled(device) and compiler.missing(device) is None


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        N, V = len(x), len(weight)
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        x, weight = _to_matmul_dtype(x), _pad_rows(_to_matmul_dtype(weight))
        logits = _logits_buffer(x, weight)
        n = len(logits)
        losses: list[Tensor] = []
        for chunk, target, grad_chunk in zip(*(torch.split(each, n) for each in (x, targets, grad_x)), strict=True):
            loss, probabilities = _losses_and_probabilities(chunk, weight, target, logits, V)
            probabilities.scatter_add_(1, target[:, None], loss.new_full((len(loss), 1), -1.0))
            grad_logits = probabilities.to(x.dtype)  # (n, ≥ V), of the sum of losses; zero beyond V
            with torch.autocast(x.device.type, enabled=False):
                _add_matmul(grad_weight, grad_logits[:, :V].t(), chunk / N, first=not losses)
                grad_chunk.copy_(grad_logits[:, : len(weight)] @ weight).div_(N)
            losses.append(loss)
        ctx.gradients = grad_x, grad_weight
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_weight = ctx.gradients
        del ctx.gradients  # as the only reference, autograd takes the tensors over instead of copying them
        if grad_output.device.type != "cpu" or grad_output != 1:  # comparing would wait for another device
            grad_x, grad_weight = grad_x.mul_(grad_output), grad_weight.mul_(grad_output)
        return grad_x, grad_weight, None


def _losses_and_probabilities(
    x: Tensor, weight: Tensor, targets: Tensor, logits: Tensor, V: int
) -> tuple[Tensor, Tensor]:
    """Per-token losses and probabilities of one chunk, computed in place in `logits`.

    Returns:
        Losses `(n,)` and probabilities `(n, width of logits)`, which are zero beyond column V.
    """
    block = BLOCK_ON_CPU if x.device.type == "cpu" else len(weight)
    logits = logits[: len(x)]
    written = logits[:, : len(weight)]
    with torch.autocast(x.device.type, enabled=False):
        for rows, columns in zip(torch.split(weight, block), torch.split(written, block, dim=1), strict=True):
            _matmul(x, rows.t(), out=columns)
    logits[:, V:] = -torch.inf
    probabilities = torch.softmax(logits, dim=1, out=logits)
    losses = -probabilities.gather(1, targets[:, None]).log()  # (n, 1)
    if x.device.type != "cpu" or losses.max() > UNDERFLOW:  # comparing would wait for another device
        largest, likeliest = probabilities.max(1)
        margins = ((weight[likeliest] - weight[targets]) * x).sum(1, dtype=logits.dtype)
        losses = torch.where(losses > UNDERFLOW, (margins - largest.log())[:, None], losses)
    return losses.squeeze(1), probabilities


def _matmul(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Write `left @ right` to `out`, which may have a wider dtype."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _add_matmul(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add `left @ right` to `total`; if `first`, overwrite it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        total.copy_(left @ right)
    else:
        total.add_(left @ right)


def _pad_rows(weight: Tensor) -> Tensor:
    missing = -len(weight) % (MULTIPLE_ON_CPU if weight.device.type == "cpu" else MULTIPLE)
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def _logits_buffer(x: Tensor, weight: Tensor) -> Tensor:
    """An uninitialized buffer for one chunk's logits, in float32 or wider, with aligned rows."""
    n = CHUNK_ON_CPU if x.device.type == "cpu" else CHUNK
    width = -(-len(weight) // ALIGNMENT) * ALIGNMENT
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty((min(n, len(x)), width), dtype=dtype, device=x.device)


def _to_matmul_dtype(tensor: Tensor) -> Tensor:
    """Cast to autocast's dtype where autocast is on."""
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
