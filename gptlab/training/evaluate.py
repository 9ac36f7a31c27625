"""Evaluate a model on windows of a held-out text."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gptlab.data.tokens import Split
from gptlab.data.windows import windows_at, yardstick
from gptlab.distributed.workers import SINGLE, Workers
from gptlab.training.settings import Settings

BATCH_TOKENS = 8192
"""Tokens per batch. Fixed, so that the same window has bitwise the same loss in every caller. Larger batches are no
faster on a CPU."""


@dataclass(frozen=True)
class Evaluation:
    """Losses of windows of equal length."""

    window_losses: NDArray[np.float64]
    """Nats per token, shape `(windows,)`."""
    tokens: int
    """Number of predicted tokens."""
    bytes: int
    """Number of bytes of the predicted text."""
    yardstick: str
    """Hash of text, windows and length; losses are comparable only if it is equal."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.window_losses.mean())

    @property
    def loss_se(self) -> float:
        """Standard error of `loss` over windows; NaN for a single window."""
        n = len(self.window_losses)
        return float(self.window_losses.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the predicted text, comparable across tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """The exponential of `loss`; infinite where it overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    val: Split,
    starts: NDArray[np.int64],
    *,
    sequence_length: int,
    settings: Settings,
    advance: Callable[[int], None] = lambda windows: None,
    workers: Workers = SINGLE,
) -> Evaluation:
    """Compute the loss of each window.

    Args:
        model: Called as `model(tokens, targets, reduction="none")`; its mode is restored.
        val: The text.
        starts: Index of each window's first token, `(windows,)`.
        sequence_length: Predicted tokens per window.
        settings: The device and precision.
        advance: Called after each batch with its number of windows.
        workers: The processes that share the windows; each of them gets the whole result.
    """
    was_training = model.training
    model.eval()
    losses, predicted_bytes, token_bytes = [], [], val.tokenizer.token_bytes()
    batch_size = max(BATCH_TOKENS // sequence_length, 1)
    own_starts = workers.share(starts)
    for first in range(0, len(own_starts), batch_size):
        windows = windows_at(val.tokens, own_starts[first : first + batch_size], sequence_length)
        predicted_bytes.append(torch.from_numpy(token_bytes[windows[:, 1:]].sum(axis=1, dtype=np.int64)))
        batch = torch.from_numpy(windows).to(settings.device)
        with settings.autocast():
            loss = model(batch[:, :-1], batch[:, 1:], reduction="none")  # (B, T)
        losses.append(loss.cpu().double().mean(dim=1))
        advance(len(windows))
    model.train(was_training)
    return Evaluation(
        window_losses=workers.collect(torch.cat(losses), len(starts)).numpy(),
        tokens=len(starts) * sequence_length,
        bytes=int(workers.collect(torch.cat(predicted_bytes), len(starts)).sum()),
        yardstick=yardstick(val, starts, sequence_length),
    )
