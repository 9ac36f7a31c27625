"""Sampling speed of baseline's model vs. transformers, vs. no key-value cache, and in a batch."""

import time
from collections.abc import Iterator

import torch
from _pairs import interleave
from _table import Row
from training import hugging_face

from gptlab.data.tokenizer import gpt2
from gptlab.model import gpt
from gptlab.model.gpt import GPT, KeyValueCache
from gptlab.model.sample import samples
from gptlab.spec import ModelSpec

TOKENS, SHORT, COUNT, PAIRS = 512, 64, 8, 3
STRIDE = 64
"""Without a cache the time per token grows with the text; it is measured at every 64th position."""
PROMPT = "The"
READ_MB = 400


def rows() -> Iterator[Row]:
    """Speeds with random weights, which cost the same as trained ones."""
    spec = ModelSpec()
    model = gpt.build(spec, seed=0).eval()
    reference = hugging_face(spec).eval()
    assert sum(parameter.numel() for parameter in reference.parameters()) == spec.parameters
    prompt = torch.tensor([gpt2().encode_ordinary(PROMPT)])

    def ours(count: int = 1, tokens: int = TOKENS) -> float:
        started = time.perf_counter()
        samples(model, PROMPT, count, trained_length=spec.context_length, max_tokens=tokens)
        return count * tokens / (time.perf_counter() - started)

    def transformers() -> float:
        started = time.perf_counter()
        generated = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=0.8,
            top_k=50,
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            pad_token_id=50256,
        )
        assert generated.shape[1] == prompt.shape[1] + TOKENS
        return TOKENS / (time.perf_counter() - started)

    def without_cache() -> float:
        return 1 / (sum(seconds_of(model, length) for length in range(STRIDE // 2, TOKENS, STRIDE)) * STRIDE / TOKENS)

    samples(model, PROMPT, 1, trained_length=spec.context_length, max_tokens=8)
    reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, pad_token_id=50256)
    sides = {
        "ours": ours,
        "theirs": transformers,
        "without cache": without_cache,
        "eight": lambda: ours(COUNT, SHORT),
        "one": lambda: ours(1, SHORT),
        "bytes": bytes_per_s,
    }
    costs = interleave(sides, PAIRS)
    found = {side: [one.value for one in took] for side, took in costs.items()}
    read = 4 * (spec.parameters - (spec.vocab_size + spec.context_length) * spec.n_embd)
    share = sorted(tokens * read / able for tokens, able in zip(found["ours"], found["bytes"], strict=True))[PAIRS // 2]
    yield Row(
        "sampling",
        f"{TOKENS} tokens, baseline",
        "transformers' generate",
        "tokens/s",
        found["ours"],
        found["theirs"],
        target=">= 1.3",
        limit=share,
        note=f"the limit: reading {read / 1e6:.0f} MB of weights per token as fast as torch.sum reads memory",
    )
    yield Row(
        "sampling",
        f"{TOKENS} tokens, baseline",
        "no key-value cache",
        "tokens/s",
        found["ours"],
        found["without cache"],
        target=">= 5",
        note=f"measured at every {STRIDE}th position, with logits of the last position only",
    )
    yield Row(
        "sampling",
        f"batch of {COUNT} texts of {SHORT} tokens",
        "ours, one text",
        "tokens/s",
        found["eight"],
        found["one"],
    )


@torch.inference_mode()
def seconds_of(model: GPT, length: int) -> float:
    """Seconds for one token, recomputing all `length` tokens before it."""
    tokens = torch.zeros((1, length), dtype=torch.long)
    started = time.perf_counter()
    model(tokens, cache=KeyValueCache(model.spec, 1, length))
    return time.perf_counter() - started


def bytes_per_s() -> float:
    """Memory bandwidth: the best of several sums over an array larger than the CPU caches."""
    numbers = torch.ones(READ_MB * 10**6 // 4)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        best = max(best, READ_MB * 10**6 / (time.perf_counter() - started))
    return best
