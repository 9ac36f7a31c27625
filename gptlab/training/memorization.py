"""How far a model continues passages of a text verbatim, by greedy decoding.

A greedy continuation agrees with the text up to a token if and only if each token so far is the most likely one after
the text before it. So one pass over a passage gives the match lengths of all its prompts, and no text is generated.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gptlab.data.tokens import TokenSequence
from gptlab.data.windows import FEISTEL_ROUNDS, Windows, permute, windows_at
from gptlab.explanation.stored import EXCLUDED
from gptlab.model.gpt import GPT
from gptlab.randomness import Purpose, name_word, random_bits
from gptlab.training.settings import Settings

PROMPTS = (8, 16, 32, 64)
CONTINUATION = 32
CONTEXT = PROMPTS[0]
"""A passage occurs in another text if its continuation does, after at least this many tokens of its prompt."""
BATCH_LOGITS = 1 << 25
"""Logits that are in memory at the same time: 128 MiB."""


def lengths(sequence_length: int) -> tuple[list[int], int]:
    """Return the prompt lengths that fit into a window, and the length of the continuations.

    A window is a training window, with its last target. A continuation takes at most half of it.
    """
    continuation = min(CONTINUATION, (sequence_length + 1) // 2)
    return [prompt for prompt in PROMPTS if prompt + continuation <= sequence_length + 1], continuation


def trained_starts(windows: Windows, steps: range, count: int) -> tuple[NDArray[np.int64], int]:
    """Draw windows that a run has trained on, without two that overlap.

    They are of the epoch of which most was seen: the last complete one, or the first one if it is not complete.

    Args:
        windows: The order of the windows.
        steps: The run's steps. Those of a branch begin where it does: its parent may have had another order.
        count: Number of windows; fewer if there are not as many.

    Returns:
        The starts in ascending order, and the number of windows among which they were drawn.
    """
    begin, end = (windows.offset + step * windows.batch_size for step in (steps.start, steps.stop))
    size, last = windows.per_epoch, end // windows.per_epoch
    seen = [range(max(begin, epoch * size), min(end, (epoch + 1) * size)) for epoch in (last, last - 1)]
    numbers = max(seen, key=len)
    each = Windows(windows.tokens, windows.sequence_length, 1, windows.seed)
    starts = [int(each.starts(numbers[number])[0]) for number in _draw(len(numbers), count)]
    return np.array(sorted(starts), np.int64), len(numbers)


def held_out_starts(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Draw some of the starts of held-out windows; the same ones for every run with the same windows."""
    return np.sort(starts[_draw(len(starts), count)])


def match_lengths(
    model: GPT,
    tokens: TokenSequence,
    starts: NDArray[np.int64],
    *,
    other: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    sequence_length: int,
    vocab_size: int,
    settings: Settings,
    advance: Callable[[int], None] = lambda passages: None,
) -> NDArray[np.int64]:
    """Return how many tokens of each passage's continuation are greedily continued as in the text.

    A prompt is the beginning of a window, so the model sees it at the positions at which it was trained on it.

    Args:
        model: In evaluation mode.
        tokens: The part of the text.
        starts: Index of each window's first token, `(passages,)`.
        other: Returns whether passages, `(passages, length)`, also occur in the other part of the text.
        sequence_length: Predicted tokens per window.
        vocab_size: Number of tokens that are drawn; a model can have more embeddings.
        settings: The device and precision.
        advance: Called after each batch with its number of passages.

    Returns:
        Match lengths, `(passages, prompts)`, with `EXCLUDED` where the other part has the continuation after the same
        `CONTEXT` tokens.
    """
    prompts, continuation = lengths(sequence_length)
    matches = np.zeros((len(starts), len(prompts)), np.int64)
    if not len(starts) or not prompts:
        return matches
    size = prompts[-1] + continuation - 1  # tokens that are predicted
    batch_size = max(BATCH_LOGITS // (size * model.spec.vocab_size), 1)
    passages = windows_at(tokens, starts, size)  # (passages, size + 1)
    for first in range(0, len(starts), batch_size):
        correct = _greedily_correct(model, passages[first : first + batch_size], vocab_size, settings)
        for column, prompt in enumerate(prompts):
            run = correct[:, prompt - 1 : prompt - 1 + continuation].cumprod(axis=1)
            matches[first : first + batch_size, column] = run.sum(axis=1)
        advance(len(correct))
    for column, prompt in enumerate(prompts):
        matches[other(passages[:, prompt - CONTEXT : prompt + continuation]), column] = EXCLUDED
    return matches


@torch.no_grad()
def _greedily_correct(
    model: GPT, passages: NDArray[np.int64], vocab_size: int, settings: Settings
) -> NDArray[np.int64]:
    """Return 1 where the most likely token after the text so far is the next one, else 0, `(B, size)`."""
    batch = torch.from_numpy(passages).to(settings.device)
    with settings.autocast():
        likeliest = model(batch[:, :-1])[:, :, :vocab_size].argmax(dim=2)  # (B, size)
    correct: NDArray[np.int64] = (likeliest == batch[:, 1:]).cpu().numpy().astype(np.int64)
    return correct


def _draw(size: int, count: int) -> NDArray[np.int64]:
    """Draw `count` different numbers below `size`, or all of them, in an order that depends on `size` only."""
    if not size:
        return np.zeros(0, np.int64)
    keys = random_bits(0, Purpose.SAMPLE, name_word("memorization"), n=FEISTEL_ROUNDS)
    drawn = permute(np.arange(min(size, count), dtype=np.uint64), size, [int(key) for key in keys])
    return drawn.astype(np.int64)
