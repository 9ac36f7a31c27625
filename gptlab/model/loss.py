"""The cross-entropy of the output layer without its logits: they exist for a few hundred tokens at a time.

Logits are by far the largest tensor of training: 412 MB at 2 × 1024 tokens, and a plain loss holds their log-softmax
and their gradient beside them. Here the gradients of the output layer and of its input are formed chunk by chunk in the
forward pass, while a chunk's logits are in the caches (the idea of Liger Kernel, Hsu et al. 2024, section 3.2; Cut
Cross-Entropy, Wijmans et al. 2024, goes further). Backward only hands them on.

N is the number of tokens, C the width, V the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK, CHUNK_ON_CPU = 4096, 256
"""Tokens whose logits exist at a time."""
ALIGNMENT = 64
"""Rows of logits begin at multiples of so many numbers. Where they begin anywhere, as they would with a vocabulary of
50,257, the matrix products that write and read them take half as long again."""
MULTIPLE, MULTIPLE_ON_CPU = 64, 1
"""In its products the output layer has a multiple of so many rows, as tensor cores want it; the others are zero."""
BLOCK_ON_CPU = 2048
"""Rows of the output layer that are multiplied at a time: all at once take a third longer there."""
UNDERFLOW = 80.0
"""Nats beyond which a probability is about to underflow, so that the loss is computed another way."""


def mean_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean of `token_cross_entropy`, a scalar, with its gradient by `x` and `weight`."""
    if not torch.is_grad_enabled():
        return token_cross_entropy(x, weight, targets).mean()
    loss: Tensor = _MeanCrossEntropy.apply(x, weight, targets)  # type: ignore[no-untyped-call]  # torch's
    return loss


@torch.no_grad()
def token_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each token, in nats and at least float32, without a gradient.

    Args:
        x: `(N, C)`, what goes into the output layer.
        weight: `(V, C)`, the output layer's.
        targets: `(N,)`, integers below V.

    Returns:
        `(N,)`.
    """
    V = len(weight)
    x, weight = _in_precision_of_products(x), _padded(_in_precision_of_products(weight))
    logits = _buffer(x, weight)
    chunks = zip(torch.split(x, len(logits)), torch.split(targets, len(logits)), strict=True)
    return torch.cat([_softmax(chunk, weight, target, logits, V)[0] for chunk, target in chunks])


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        N, V = len(x), len(weight)
        by_x, by_weight = torch.empty_like(x), torch.empty_like(weight)
        x, weight = _in_precision_of_products(x), _padded(_in_precision_of_products(weight))
        logits = _buffer(x, weight)
        size = len(logits)
        losses: list[Tensor] = []
        for chunk, target, by_chunk in zip(*(torch.split(each, size) for each in (x, targets, by_x)), strict=True):
            loss, probabilities = _softmax(chunk, weight, target, logits, V)
            probabilities.scatter_add_(1, target[:, None], loss.new_full((len(loss), 1), -1.0))
            gradient = probabilities.to(x.dtype)  # of the summed losses by the logits, zero beyond V
            with torch.autocast(x.device.type, enabled=False):
                _add_product(by_weight, gradient[:, :V].t(), chunk / N, first=not losses)
                by_chunk.copy_(gradient[:, : len(weight)] @ weight).div_(N)
            losses.append(loss)
        ctx.gradients = by_x, by_weight
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        by_x, by_weight = ctx.gradients
        del ctx.gradients  # autograd keeps what nobody else holds, and copies what somebody does
        if by_loss.device.type != "cpu" or by_loss != 1:  # looking would wait for another device
            by_x, by_weight = by_x.mul_(by_loss), by_weight.mul_(by_loss)
        return by_x, by_weight, None


def _softmax(x: Tensor, weight: Tensor, targets: Tensor, logits: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """The losses of a chunk, `(n,)`, and its probabilities, which lie in the buffer for the logits: zero beyond V."""
    block = BLOCK_ON_CPU if x.device.type == "cpu" else len(weight)
    logits = logits[: len(x)]
    columns_written = logits[:, : len(weight)]
    with torch.autocast(x.device.type, enabled=False):
        for rows, columns in zip(torch.split(weight, block), torch.split(columns_written, block, dim=1), strict=True):
            if logits.dtype == x.dtype:
                torch.mm(x, rows.t(), out=columns)
            else:
                columns.copy_(x @ rows.t())
    logits[:, V:] = -torch.inf
    probabilities = torch.softmax(logits, dim=1, out=logits)
    losses = -probabilities.gather(1, targets[:, None]).log()  # (n, 1)
    if x.device.type != "cpu" or losses.max() > UNDERFLOW:  # looking would wait for another device
        largest, likeliest = probabilities.max(1)
        margins = ((weight[likeliest] - weight[targets]) * x).sum(1, dtype=logits.dtype)
        losses = torch.where(losses > UNDERFLOW, (margins - largest.log())[:, None], losses)
    return losses.squeeze(1), probabilities


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add `left @ right` to what is there; the first time there is nothing yet."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        total.copy_(left @ right)
    else:
        total.add_(left @ right)


def _padded(weight: Tensor) -> Tensor:
    missing = -len(weight) % (MULTIPLE_ON_CPU if weight.device.type == "cpu" else MULTIPLE)
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def _buffer(x: Tensor, weight: Tensor) -> Tensor:
    """Room for a chunk's logits, at least in float32, with columns to spare so that its rows are aligned."""
    size = CHUNK_ON_CPU if x.device.type == "cpu" else CHUNK
    width = -(-len(weight) // ALIGNMENT) * ALIGNMENT
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty((min(size, len(x)), width), dtype=dtype, device=x.device)


def _in_precision_of_products(tensor: Tensor) -> Tensor:
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
