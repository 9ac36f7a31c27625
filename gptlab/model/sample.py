"""Sample text from a model: several continuations of one prompt at once, token by token."""

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Distribution:
    """Which distribution the next token is drawn from."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def __post_init__(self) -> None:
        """Check the probabilities.

        Raises:
            BadInputError: One is out of range.
        """
        if not 0 < self.top_p <= 1:
            raise BadInputError(f"top_p must be more than 0 and at most 1, not {self.top_p}; 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise BadInputError(f"min_p must be from 0 to 1, not {self.min_p}; 0 keeps all tokens")


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
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], object] | None = None,
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
        top_p: Of those, draw from the fewest most likely tokens whose probabilities add up to at least this (nucleus
            sampling, Holtzman et al. 2020, section 3.1); 1 draws from all.
        min_p: Of those, draw from tokens that are at least this many times as likely as the most likely one (Nguyen
            et al. 2024, section 3); 0 draws from all.
        seed: The same seed and arguments give the same texts.
        on_text: Called with each new piece of the only continuation, whole characters, as its tokens are drawn. The
            pieces together are the text that is returned. `count` must be 1.

    Returns:
        The continuations without the prompt.

    Raises:
        BadInputError: The prompt is empty, prompt and new tokens together exceed `trained_length`, or `top_p` or
            `min_p` is out of range.
        GptlabError: The model's output is not finite.
    """
    distribution = _Distribution(temperature, top_k, top_p, min_p)
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
    pieces = _TextPieces(tokenizer, on_text) if on_text else None
    was_training = model.training
    model.eval()
    try:
        with _stored_by_columns(model, batch=min(count, BATCH)), torch.inference_mode():
            batches = [
                _continue(model, tokens, length, indices, tokenizer.vocab_size, distribution, seed, pieces)
                for indices in (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
            ]
    finally:
        model.train(was_training)
    if pieces:
        pieces.end()
    return [tokenizer.decode(new.tolist()) for batch in batches for new in batch]


class _TextPieces:
    """Passes on the text of tokens, in whole characters: a token can end inside one."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], object]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> None:
        """Pass on the characters that this token completes."""
        if text := self._decoder.decode(self._tokenizer.decode_bytes([token])):
            self._on_text(text)

    def end(self) -> None:
        """Pass on what is left: U+FFFD for a character without an end."""
        if text := self._decoder.decode(b"", final=True):
            self._on_text(text)


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
    distribution: _Distribution,
    seed: int,
    pieces: _TextPieces | None,
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
        drawn.append(_draw(logits, uniform[:, position, None], distribution))
        if pieces:
            pieces.add(int(drawn[-1]))
        new = drawn[-1].to(device)
    return torch.cat(drawn, dim=1)


def _uniform(seed: int, indices: range, length: int) -> Tensor:
    """Return independent uniform numbers in [0, 1) for each continuation and position, `(B, length)`."""
    bits = np.stack([random_bits(seed, Purpose.SAMPLE, index, n=length) for index in indices])
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def _draw(logits: Tensor, uniform: Tensor, distribution: _Distribution) -> Tensor:
    """Return the next tokens, `(B, 1)`, for `(B, V)` logits and `(B, 1)` uniform numbers in [0, 1).

    Each number is looked up in the cumulative probabilities in vocabulary order, so rounding differences in the logits
    change the token only if the number lies on the boundary between two tokens.
    """
    temperature = distribution.temperature
    k = 1 if temperature < 1e-6 else distribution.top_k  # dividing by a smaller number overflows
    likeliest = logits.topk(k).indices.sort().values if 0 < k < logits.shape[1] else None  # (B, k)
    if likeliest is not None:
        logits = logits.gather(1, likeliest)
    logits = logits.cpu().double()  # MPS has no float64
    if not logits.isfinite().all():
        raise GptlabError("the model's output is not finite: its weights are damaged, or it diverged")
    probabilities = torch.softmax(logits / max(temperature, 1e-6), dim=1)
    cumulative = _truncate(probabilities, distribution.top_p, distribution.min_p).cumsum(dim=1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn if likeliest is None else likeliest.cpu().gather(1, drawn)


def _truncate(probabilities: Tensor, top_p: float, min_p: float) -> Tensor:
    """Return the `(B, V)` probabilities with 0 for tokens that are not drawn; they add up to less than 1 then.

    Of tokens that are equally likely, the one with the smaller number belongs to the nucleus first.
    """
    kept = probabilities
    if top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        likelier = nn.functional.pad(ordered.cumsum(dim=1)[:, :-1], (1, 0))  # the probability of all likelier tokens
        kept = torch.zeros_like(kept).scatter(1, order, ordered.where(likelier < top_p, 0.0))
    return kept.where(probabilities >= min_p * probabilities.amax(dim=1, keepdim=True), 0.0)
