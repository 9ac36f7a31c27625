"""Sample text from a model: several continuations of one prompt at once, token by token."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.vocabularies import GPT2, Tokenizer
from gptlab.errors import BadInputError, GptlabError
from gptlab.model.cache import KeyValueCache
from gptlab.model.gpt import GPT
from gptlab.randomness import Purpose, random_bits
from gptlab.terminal.text import plural

BATCH = 16
"""Continuations that are generated together; their keys and values are in memory at the same time."""


def samples(
    model: GPT,
    prompt: str,
    count: int,
    *,
    trained_length: int,
    tokenizer: Tokenizer = GPT2,
    max_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> list[str]:
    """Return `count` continuations of a prompt.

    Each token is drawn with a random number that depends only on the seed, the continuation's index and the token's
    position. So a larger `count` returns the same first continuations, except where matrix products of another batch
    size round differently and a draw lies on the boundary between two tokens.

    Args:
        model: In training or evaluation mode; the mode is restored afterwards.
        prompt: Text of at least one token.
        count: Number of continuations.
        trained_length: The sequence length of training; later positions were never trained.
        tokenizer: The one that the model was trained with.
        max_tokens: New tokens per continuation; by default as many as fit into `trained_length`.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Draw from this many most likely tokens; 0 draws from all.
        seed: The same seed and arguments give the same texts.

    Returns:
        The continuations without the prompt.

    Raises:
        BadInputError: The prompt is empty, or prompt and new tokens together exceed `trained_length`.
        GptlabError: The model's output is not finite.
    """
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise BadInputError("the prompt is empty; give at least one character")
    room = trained_length - len(tokens)
    if room < 1:
        raise BadInputError(
            f"the prompt has {plural(len(tokens), 'token')}; the model was trained on windows of {trained_length}, "
            f"so use at most {trained_length - 1}"
        )
    if max_tokens is not None and max_tokens > room:
        raise BadInputError(
            f"{plural(len(tokens), 'prompt token')} and {max_tokens} new exceed the "
            f"{plural(trained_length, 'position')} that saw training; ask for at most {room}"
        )
    length = len(tokens) + (max_tokens if max_tokens is not None else room)
    was_training = model.training
    model.eval()
    try:
        with _stored_by_columns(model, batch=min(count, BATCH)), torch.inference_mode():
            batches = [
                _continue(model, tokens, length, indices, tokenizer.vocab_size, temperature, top_k, seed)
                for indices in (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
            ]
    finally:
        model.train(was_training)
    return [tokenizer.decode(new.tolist()) for batch in batches for new in batch]


@contextmanager
def _stored_by_columns(model: GPT, batch: int) -> Iterator[None]:
    """Store the matrices that have more rows than columns by columns, for a batch of one on a CPU.

    With one row of input, MKL reads a (3072, 768) matrix at 13 GB/s if it is stored by rows, and at 21 if by columns.
    The copy takes as long as five tokens. Larger batches and matrices with more columns gain nothing.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    weights += [model.token_embedding.weight] if model.output is None else []
    if batch > 1 or model.token_embedding.weight.device.type != "cpu":
        weights = []
    original = {weight: weight.data for weight in weights if weight.shape[0] > weight.shape[1]}
    try:
        for weight, by_rows in original.items():
            weight.data = by_rows.t().contiguous().t()
        yield
    finally:
        for weight, by_rows in original.items():
            weight.data = by_rows


def _continue(
    model: GPT,
    tokens: list[int],
    length: int,
    indices: range,
    vocab_size: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> Tensor:
    """Return the new tokens of the continuations with these indices, `(B, length - len(tokens))`.

    Only the first `vocab_size` tokens are drawn: a model can have more embeddings than there are tokens.
    """
    device = model.token_embedding.weight.device
    cache = KeyValueCache(model.spec, len(indices), length - 1, device)  # the last token is never an input
    uniform = _uniform(seed, indices, length)  # (B, length)
    new = torch.tensor([tokens], device=device)  # (1, T), then (B, 1)
    drawn = []
    for position in range(len(tokens), length):
        logits = model(new, cache=cache)[:, -1, :vocab_size]  # (1, V), then (B, V)
        logits = logits.float().expand(len(indices), -1)
        drawn.append(_draw(logits, uniform[:, position, None], temperature, top_k))
        new = drawn[-1].to(device)
    return torch.cat(drawn, dim=1)


def _uniform(seed: int, indices: range, length: int) -> Tensor:
    """Return independent uniform numbers in [0, 1) for each continuation and position, `(B, length)`."""
    bits = np.stack([random_bits(seed, Purpose.SAMPLE, index, n=length) for index in indices])
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def _draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> Tensor:
    """Return the next tokens, `(B, 1)`, for `(B, V)` logits and `(B, 1)` uniform numbers in [0, 1).

    Each number is looked up in the cumulative probabilities in vocabulary order, so rounding differences in the logits
    change the token only if the number lies on the boundary between two tokens.
    """
    k = 1 if temperature < 1e-6 else top_k  # dividing by a smaller number overflows
    likeliest = logits.topk(k).indices.sort().values if 0 < k < logits.shape[1] else None  # (B, k)
    if likeliest is not None:
        logits = logits.gather(1, likeliest)
    logits = logits.cpu().double()  # MPS has no float64
    if not logits.isfinite().all():
        raise GptlabError("the model's output is not finite: its weights are damaged, or it diverged")
    cumulative = torch.softmax(logits / max(temperature, 1e-6), dim=1).cumsum(dim=1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn if likeliest is None else likeliest.cpu().gather(1, drawn)
