"""The loss on held-out windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gptlab.data.tokenizer import token_bytes
from gptlab.data.tokens import Split
from gptlab.data.windows import windows_at, yardstick
from gptlab.training.settings import Settings

BATCH_TOKENS = 8192
"""A fixed number, so that the losses are the same to the bit wherever they are computed; more is no faster on a CPU."""


@dataclass(frozen=True)
class Evaluation:
    """Losses of windows; all windows have the same number of tokens."""

    window_losses: NDArray[np.float64]
    """Nats per token, shape `(windows,)`."""
    tokens: int
    """Predicted tokens."""
    bytes: int
    """Bytes of text that the predicted tokens stand for."""
    yardstick: str

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.window_losses.mean())

    @property
    def loss_se(self) -> float:
        """Standard error of `loss` over windows; NaN for a single one."""
        n = len(self.window_losses)
        return float(self.window_losses.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the predicted tokens' text: the same unit for every tokenizer."""
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
) -> Evaluation:
    """The loss of each window that begins at `starts`; `advance` hears how many windows were just done.

    Without a graph a batch takes little memory, so it is larger than training's.
    """
    was_training = model.training
    model.eval()
    losses = []
    predicted_bytes = 0
    batch_size = max(BATCH_TOKENS // sequence_length, 1)
    for first in range(0, len(starts), batch_size):
        windows = windows_at(val.tokens, starts[first : first + batch_size], sequence_length)
        predicted_bytes += int(token_bytes()[windows[:, 1:]].sum())
        batch = torch.from_numpy(windows).to(settings.device)
        with autocast(settings):
            loss = model(batch[:, :-1], batch[:, 1:], reduction="none")  # (B, T)
        losses.append(loss.cpu().double().mean(dim=1))
        advance(len(windows))
    model.train(was_training)
    return Evaluation(
        window_losses=torch.cat(losses).numpy(),
        tokens=len(starts) * sequence_length,
        bytes=predicted_bytes,
        yardstick=yardstick(val, starts, sequence_length),
    )


def autocast(settings: Settings) -> torch.autocast:
    """Matrix products in the settings' precision."""
    return torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")
