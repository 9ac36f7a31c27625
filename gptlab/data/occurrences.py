"""How often tokens and passages occur in a part of a text, read piece by piece."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gptlab.data.tokens import TokenSequence

PIECE_TOKENS = 1 << 20
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse modulo 2⁶⁴: 2⁶⁴ divided by the golden ratio."""


def token_counts(tokens: TokenSequence, vocab_size: int) -> NDArray[np.int64]:
    """Return how often each token occurs, `(vocab_size,)`."""
    counts = np.zeros(vocab_size, np.int64)
    for start, piece in _pieces(tokens, 0):
        counts += np.bincount(piece[: min(PIECE_TOKENS, len(tokens) - start)], minlength=vocab_size)
    return counts


def occur(passages: NDArray[np.int64], tokens: TokenSequence) -> NDArray[np.bool_]:
    """Return whether each passage occurs among the tokens, `(passages,)`.

    Hashes of all stretches of that length are looked up among those of the passages (Karp and Rabin 1987); where one is
    found, the tokens are compared.

    Args:
        passages: Passages of equal length, `(passages, length)`.
        tokens: Where to look for them.
    """
    found = np.zeros(len(passages), np.bool_)
    length = passages.shape[1]
    if not len(passages) or not length:
        return found
    hashes = np.concatenate([_hashes(passage, length) for passage in passages])
    order = np.argsort(hashes)
    for _, piece in _pieces(tokens, length - 1):
        if len(piece) < length:
            continue
        here = _hashes(piece, length)
        places = np.flatnonzero(_are_among(here, hashes[order]))
        for place in places.tolist():
            same = np.flatnonzero(hashes == here[place])
            found[same] |= (passages[same] == piece[place : place + length]).all(axis=1)
    return found


def _pieces(tokens: TokenSequence, overlap: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield pieces of the tokens, each with its start and with `overlap` tokens of the next one."""
    for start in range(0, len(tokens), PIECE_TOKENS):
        yield start, tokens[start : start + PIECE_TOKENS + overlap].astype(np.int64)


def _hashes(tokens: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """Return the polynomial hash, modulo 2⁶⁴, of each stretch of this length, from differences of a running sum."""
    powers = np.cumprod(np.full(len(tokens), MULTIPLIER))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(tokens.astype(np.uint64) * powers)])
    stretches = sums[length:] - sums[:-length]
    inverse = np.uint64(pow(int(MULTIPLIER), -1, 2**64))
    hashes: NDArray[np.uint64] = stretches * np.cumprod(np.full(len(stretches), inverse))
    return hashes


def _are_among(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each value is one of `ordered`, which are sorted."""
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    among: NDArray[np.bool_] = ordered[places] == values
    return among
