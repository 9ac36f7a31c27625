"""The tokens of a passage with what one model or two predict for each of them, as `gptlab tokens` shows them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.data.vocabularies import Tokenizer
from gptlab.model.gpt import GPT
from gptlab.student_t import t_quantile
from gptlab.tracking.run import Run
from gptlab.training.token_scores import TokenScores

BLOCK = 64
"""Tokens per block. An interval is over the means of blocks, because losses of neighboring tokens are correlated."""
MIN_BLOCKS = 4


@dataclass(frozen=True)
class Reader:
    """A model that reads a passage."""

    name: str
    """The run's id, or the directory."""
    step: int | None
    """None for a directory."""
    tokenizer: Tokenizer
    sequence_length: int
    """Tokens of a window. `transformers` does not record with how many a model was trained, so all positions count."""
    precision: str
    load: Callable[[], GPT]
    run: Run | None = None


@dataclass(frozen=True)
class Difference:
    """The mean over the tokens of the second model's loss less the first one's, in nats."""

    mean: float
    se: float | None
    """Standard error over blocks of tokens; None if there are too few."""
    low: float | None
    """Lower end of the 95% t-interval."""
    high: float | None
    """Upper end of it."""
    blocks: int

    def document(self) -> dict[str, Any]:
        """Return this part of what `gptlab tokens --json` prints."""
        return dict(vars(self))


@dataclass(frozen=True)
class Passage:
    """The tokens of a passage, and what one or two models predict for each of them."""

    text: str
    """Which text it is from, in words."""
    first: int
    """Index of its first token in the text."""
    text_tokens: int
    """Number of tokens in the text."""
    ids: NDArray[np.int64]
    """The tokens, `(N,)`."""
    tokenizer: Tokenizer
    readers: Sequence[Reader]
    scores: Sequence[TokenScores]
    """Those of each reader."""
    notes: Sequence[str]
    """What to know about the comparison."""

    @property
    def surprise(self) -> NDArray[np.float64]:
        """The loss of each token, or the difference between the second model's and the first one's, `(N,)`."""
        first, *second = (scores.losses for scores in self.scores)
        return second[0] - first if second else first

    def most_surprising(self, count: int) -> list[int]:
        """Return the tokens with the largest losses, or with the largest differences, the largest first."""
        sizes = np.nan_to_num(np.abs(self.surprise), nan=-1.0)
        return [int(number) for number in np.argsort(-sizes, kind="stable")[:count] if sizes[number] >= 0]

    def loss(self, number: int) -> float:
        """The mean loss of a reader, in nats per token."""
        return float(np.nanmean(self.scores[number].losses))

    def bits_per_byte(self, number: int) -> float:
        """The loss of a reader in bits per byte of the predicted tokens."""
        predicted = self.ids[self.scores[number].context > 0]
        return float(np.nansum(self.scores[number].losses)) / math.log(2) / self._bytes(predicted)

    def difference(self) -> Difference | None:
        """The mean difference between two models, with its interval over blocks; None for one."""
        if len(self.scores) == 1:
            return None
        values = self.surprise[np.isfinite(self.surprise)]
        blocks = len(values) // BLOCK
        mean = float(values.mean())
        if blocks < MIN_BLOCKS:
            return Difference(mean, None, None, None, blocks)
        means = [float(block.mean()) for block in np.array_split(values, blocks)]
        se = float(np.std(means, ddof=1)) / math.sqrt(blocks)
        half = t_quantile(blocks - 1) * se
        return Difference(mean, se, mean - half, mean + half, blocks)

    def document(self) -> dict[str, Any]:
        """Return what `gptlab tokens --json` prints, which is also what the page displays."""
        found = self.difference()
        return {
            "text": self.text,
            "first_token": self.first,
            "text_tokens": self.text_tokens,
            "vocab_size": self.tokenizer.vocab_size,
            "runs": [
                {
                    "run": reader.name,
                    "step": reader.step,
                    "sequence_length": reader.sequence_length,
                    "loss": self.loss(number),
                    "bpb": self.bits_per_byte(number),
                }
                for number, reader in enumerate(self.readers)
            ],
            "difference": found.document() if found else None,
            "notes": list(self.notes),
            "tokens": [
                {
                    "index": self.first + number,
                    **self._token(int(token)),
                    "scores": [self._scores(scores, number) for scores in self.scores],
                }
                for number, token in enumerate(self.ids.tolist())
            ],
        }

    def _scores(self, scores: TokenScores, number: int) -> dict[str, Any] | None:
        """What one model says about one token; None if it has no context."""
        if not scores.context[number]:
            return None
        likeliest = zip(scores.alternatives[number].tolist(), scores.probabilities[number].tolist(), strict=True)
        return {
            "loss": float(scores.losses[number]),
            "rank": int(scores.ranks[number]),
            "context": int(scores.context[number]),
            "alternatives": [{**self._token(token), "probability": probability} for token, probability in likeliest],
        }

    def _token(self, token: int) -> dict[str, Any]:
        content = self.tokenizer.decode_bytes([token])
        return {"id": token, "text": content.decode(errors="replace"), "bytes": content.hex()}

    def _bytes(self, ids: NDArray[np.int64]) -> int:
        return len(self.tokenizer.decode_bytes(ids.tolist()))
