"""Documents as `gptlab tokens --json` prints them, without a model."""

import random
from collections.abc import Sequence
from typing import Any


def document(contents: Sequence[Sequence[bytes]], vocabulary: Sequence[bytes] = ()) -> dict[str, Any]:
    """The document of a passage of tokens with these bytes, given once for each run; losses go up to 14 nats."""
    choose = random.Random(0)
    words = list(vocabulary or dict.fromkeys(contents[0]))
    ids = {word: number for number, word in enumerate(words)}

    def token(word: bytes) -> dict[str, Any]:
        return {"id": ids[word], "text": word.decode(errors="replace"), "bytes": word.hex()}

    def scores(number: int, run: int) -> dict[str, Any] | None:
        likeliest = choose.sample(words, min(5, len(words)))
        alternatives = [{**token(word), "probability": 0.7 / 3**place} for place, word in enumerate(likeliest)]
        loss = 14 * number / len(contents[0]) + run * choose.uniform(-4, 4)
        return {"loss": abs(loss), "rank": number, "context": number, "alternatives": alternatives} if number else None

    return {
        "text": "<b>the</b> string",
        "first_token": 0,
        "text_tokens": len(contents[0]),
        "vocab_size": max(len(words), 256),
        "runs": [
            {"run": f"micro-{'a' * 8}-s{run}", "step": 40, "sequence_length": 16, "loss": 3.0, "bpb": 1.0}
            for run in range(len(contents))
        ],
        "difference": {"mean": -0.5, "se": 0.1, "low": -0.7, "high": -0.3, "blocks": 4} if len(contents) > 1 else None,
        "notes": ["<i>it</i> may have seen this passage"],
        "tokens": [
            {"index": number, **token(word), "scores": [scores(number, run) for run in range(len(contents))]}
            for number, word in enumerate(contents[0])
        ],
    }
