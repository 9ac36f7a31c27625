"""Score single tokens: the loss, the rank and the likeliest alternatives of each token of a passage.

N is the number of tokens in the passage, K the number of alternatives, T the sequence length, V the vocabulary size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptlab.data.tokens import Split
from gptlab.data.windows import windows_at
from gptlab.errors import GptlabError
from gptlab.model.gpt import GPT
from gptlab.training.settings import Settings

ALTERNATIVES = 5
LOGITS = 1 << 23
"""Logits in memory at once, unless a single window has more: 32 MiB."""


@dataclass(frozen=True)
class TokenScores:
    """What a model predicts for each token of a passage.

    The first token of a text has no context, so it is not predicted: its loss is NaN, and its other values are zero.
    """

    context: NDArray[np.int64]
    """Number of tokens from which each token was predicted, `(N,)`."""
    losses: NDArray[np.float64]
    """Nats, `(N,)`."""
    ranks: NDArray[np.int64]
    """One more than the number of likelier tokens, `(N,)`."""
    alternatives: NDArray[np.int64]
    """The likeliest tokens, the likeliest first, `(N, K)`."""
    probabilities: NDArray[np.float64]
    """Their probabilities, `(N, K)`."""


def window_starts(positions: NDArray[np.int64], text_length: int, sequence_length: int) -> NDArray[np.int64]:
    """Return the first token of the window in which each token is predicted.

    Windows overlap by half, and each token is predicted in the first window that has it. So its context is at least
    half a window, or everything before it; and it does not depend on the passage. The last window ends with the text.

    Args:
        positions: Indices of tokens in the text, which are at least 1.
        text_length: Number of tokens in the text.
        sequence_length: Number of tokens that a window predicts, below `text_length`.
    """
    stride = max(sequence_length // 2, 1)
    beyond = np.maximum(positions - sequence_length, 0)
    starts: NDArray[np.int64] = np.minimum(-(-beyond // stride) * stride, text_length - 1 - sequence_length)
    return starts


@torch.no_grad()
def score_tokens(
    model: GPT,
    text: Split,
    first: int,
    count: int,
    *,
    sequence_length: int,
    settings: Settings,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TokenScores:
    """Score `count` tokens of a text from token `first` on.

    Args:
        model: The model, in evaluation mode, on the device of `settings`.
        text: A text of at least two tokens.
        first: Index of the passage's first token.
        count: Number of tokens of the passage; at least one of them must be predicted.
        sequence_length: Most tokens of context; a shorter text is one window.
        settings: The device and precision.
        advance: Called after each batch of windows with the number of windows done and in all.

    Raises:
        GptlabError: The model's output is not finite.
    """
    length = min(sequence_length, len(text.tokens) - 1)
    positions = np.arange(max(first, 1), first + count)
    starts = window_starts(positions, len(text.tokens), length)
    windows = np.unique(starts)
    batch_size = max(LOGITS // (length * model.spec.vocab_size), 1)
    parts = []
    for begin in range(0, len(windows), batch_size):
        batch = windows[begin : begin + batch_size]
        tokens = torch.from_numpy(windows_at(text.tokens, batch, length)).to(settings.device)  # (B, T + 1)
        with settings.autocast():
            logits = model(tokens[:, :-1])  # (B, T, V)
        shown = np.isin(starts, batch)
        rows, columns = np.searchsorted(batch, starts[shown]), (positions - starts)[shown]
        parts.append(_score(logits[rows, columns - 1].float(), tokens[rows, columns], text.tokenizer.vocab_size))
        advance(begin + len(batch), len(windows))
    losses, ranks, alternatives, probabilities = map(np.concatenate, zip(*parts, strict=True))
    if not np.isfinite(losses).all():
        raise GptlabError("the model's output is not finite: its weights are damaged, or it diverged")
    if first == 0:
        losses = np.concatenate([[np.nan], losses])
        ranks, alternatives, probabilities = (
            np.concatenate([np.zeros_like(values[:1]), values]) for values in (ranks, alternatives, probabilities)
        )
    context = np.concatenate([[0] * (first == 0), positions - starts]).astype(np.int64)
    return TokenScores(context, losses, ranks, alternatives, probabilities)


def _score(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[NDArray[Any], ...]:
    """Return losses, ranks, the likeliest tokens and their probabilities for `(n, V)` logits and `(n,)` targets.

    Only the first `vocab_size` tokens have a rank: a model can have more embeddings than there are tokens.
    """
    log_probabilities = torch.log_softmax(logits, dim=1)
    logits = logits[:, :vocab_size]
    likeliest = logits.topk(min(ALTERNATIVES, logits.shape[1]), dim=1).indices  # (n, K)
    target = targets[:, None]
    losses = -log_probabilities.gather(1, target).squeeze(1)
    ranks = (logits > logits.gather(1, target)).sum(dim=1) + 1
    probabilities = log_probabilities.gather(1, likeliest).cpu().double().exp()  # MPS has no float64
    return losses.cpu().double().numpy(), ranks.cpu().numpy(), likeliest.cpu().numpy(), probabilities.numpy()
