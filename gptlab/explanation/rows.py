"""The tables of an explanation as rows of plain values, for the terminal, `--json` and `analysis.explain`.

Losses are in nats per token, `bpb` in bits per byte of the predicted text. `low` and `high` are the ends of a 95%
interval over blocks of windows, or over passages. Differences are `second − first`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import BadInputError
from gptlab.explanation.bins import Bin
from gptlab.explanation.estimates import Ratio, Share, merge_blocks, ratio, share, share_difference
from gptlab.explanation.stored import EXCLUDED, Explanation
from gptlab.student_t import t_quantile

Row = dict[str, Any]

POSITION, FREQUENCY = "position", "frequency"


def by_position(explanation: Explanation) -> list[Row]:
    """Return a row for each bin of positions: the tokens of context that a prediction sees."""
    tokens = explanation.position_tokens
    rows = []
    for index, bin_ in enumerate(explanation.position_bins):
        loss = _loss(explanation, POSITION, index)
        bits = _bits(explanation.position_loss[:, index], explanation.position_bytes[:, index])
        rows.append(
            {
                "context": bin_.label,
                **_ends(bin_),
                "tokens": int(tokens[:, index].sum()),
                **_interval("loss", loss),
                **_interval("bpb", bits),
                **_counts(explanation, loss),
            }
        )
    return rows


def by_frequency(explanation: Explanation) -> list[Row]:
    """Return a row for each bin of counts in the training part: its loss, and its shares of tokens and loss."""
    tokens, losses = explanation.frequency_tokens, explanation.frequency_loss
    rows = []
    for index, bin_ in enumerate(explanation.frequency_bins):
        loss = _loss(explanation, FREQUENCY, index)
        part = ratio(merge_blocks(losses[:, index]), merge_blocks(losses.sum(axis=1)))
        bits = _bits(losses[:, index], explanation.frequency_bytes[:, index])
        rows.append(
            {
                "count": bin_.label,
                **_ends(bin_),
                "tokens": int(tokens[:, index].sum()),
                "share_of_tokens": float(tokens[:, index].sum() / max(tokens.sum(), 1)),
                **_interval("share_of_loss", part),
                **_interval("loss", loss),
                **_interval("bpb", bits),
                **_counts(explanation, loss),
            }
        )
    return rows


def context_gain(explanation: Explanation) -> Ratio:
    """Return what context is worth: the loss at the first position minus that in the last bin of positions."""
    return _loss(explanation, POSITION, 0) - _loss(explanation, POSITION, -1)


def context(explanation: Explanation) -> list[Row]:
    """Return one row: what context is worth, in nats per token."""
    gain = context_gain(explanation)
    return [{**_interval("gain", gain), **_counts(explanation, gain)}]


def rare_tokens(explanation: Explanation, part: float = 0.5) -> Row:
    """Return the smallest set of rarest bins that carries this part of the loss: its shares of tokens and loss."""
    losses, tokens = explanation.frequency_loss, explanation.frequency_tokens
    cumulative = losses.sum(axis=0).cumsum()
    last = int(np.argmax(cumulative >= part * cumulative[-1]))
    carried = ratio(merge_blocks(losses[:, : last + 1].sum(axis=1)), merge_blocks(losses.sum(axis=1)))
    rare = float(tokens[:, : last + 1].sum() / max(tokens.sum(), 1))
    return {
        "last": explanation.frequency_bins[last].last,
        "share_of_tokens": rare,
        **_interval("share_of_loss", carried),
    }


def memorization(explanation: Explanation) -> list[Row]:
    """Return a row for each prompt length and part: passages continued verbatim, of `trained` and `held out` text."""
    rows = []
    for index, prompt in enumerate(explanation.facts.prompts):
        for part, matches in _matches(explanation, index).items():
            found = share(_hits(explanation, matches))
            rows.append(
                {
                    "prompt": prompt,
                    "continuation": explanation.facts.continuation,
                    "part": part,
                    "passages": len(matches),
                    "excluded": _excluded(explanation, part, index),
                    "verbatim": int(_hits(explanation, matches).sum()),
                    **_interval("share", found),
                    **_mean("match", matches),
                }
            )
    return rows


def memorized(explanation: Explanation) -> list[Row]:
    """Return a row for each prompt length: the share of training passages minus that of held-out passages."""
    rows = []
    for index, prompt in enumerate(explanation.facts.prompts):
        parts = _matches(explanation, index)
        trained, held_out = (_hits(explanation, parts[part]) for part in ("trained", "held out"))
        rows.append({"prompt": prompt, **_interval("difference", share_difference(held_out, trained, paired=False))})
    return rows


def differences(first: Explanation, second: Explanation) -> list[Row]:
    """Return the paired differences `second − first` of two models on the same windows.

    A row has the kind `context` (what context is worth), `position`, `frequency` or `memorization`. Tokens must have
    been counted in the same text for a difference by frequency, and both need passages for one of memorization. It is
    paired if the passages are the same.

    Raises:
        BadInputError: The windows are not the same.
    """
    if first.facts.windows != second.facts.windows or first.position_bytes.tolist() != second.position_bytes.tolist():
        raise BadInputError("the windows are not the same: evaluate both on the same text, tokenizer and window length")
    rows = [_difference("context", "", context_gain(second) - context_gain(first), first)]
    for index, bin_ in enumerate(first.position_bins):
        paired = _loss(second, POSITION, index) - _loss(first, POSITION, index)
        rows.append(_difference("position", bin_.label, paired, first))
    if (first.facts.counted, first.facts.most) == (second.facts.counted, second.facts.most):
        for index, bin_ in enumerate(first.frequency_bins):
            paired = _loss(second, FREQUENCY, index) - _loss(first, FREQUENCY, index)
            rows.append(_difference("frequency", bin_.label, paired, first))
    return rows + _memorization_differences(first, second)


def _memorization_differences(first: Explanation, second: Explanation) -> list[Row]:
    rows = []
    shared = sorted(set(first.facts.prompts) & set(second.facts.prompts))
    for prompt in shared if first.facts.continuation == second.facts.continuation else ():
        a, b = first.facts.prompts.index(prompt), second.facts.prompts.index(prompt)
        for part, name in (("trained", "trained"), ("held out", "held_out")):
            paired = np.array_equal(getattr(first, f"{name}_start"), getattr(second, f"{name}_start"))
            both = [getattr(one, f"{name}_match")[:, index] for one, index in ((first, a), (second, b))]
            kept = (both[0] != EXCLUDED) & (both[1] != EXCLUDED) if paired else None
            one, other = (values[values != EXCLUDED if kept is None else kept] for values in both)
            found = share_difference(_hits(first, one), _hits(second, other), paired=paired)
            rows.append(
                {
                    "kind": "memorization",
                    "bin": f"{prompt}, {part}",
                    **_interval("difference", found),
                    "n": min(len(one), len(other)),
                    "paired": paired,
                }
            )
    return rows


def _difference(kind: str, label: str, difference: Ratio, explanation: Explanation) -> Row:
    return {
        "kind": kind,
        "bin": label,
        **_interval("difference", difference),
        "n": explanation.facts.windows,
        "paired": True,
    }


def _loss(explanation: Explanation, kind: str, index: int) -> Ratio:
    """The loss of a bin in nats per token."""
    losses, tokens = getattr(explanation, f"{kind}_loss"), getattr(explanation, f"{kind}_tokens")
    return ratio(merge_blocks(losses[:, index]), merge_blocks(tokens[:, index]))


def _bits(losses: NDArray[np.float64], sizes: NDArray[np.int64]) -> Ratio:
    """The loss in bits per byte of the predicted text."""
    return ratio(merge_blocks(losses) / math.log(2), merge_blocks(sizes))


def _matches(explanation: Explanation, index: int) -> dict[str, NDArray[np.int64]]:
    """The match lengths of the passages that count, for a prompt length."""
    parts = {"trained": explanation.trained_match[:, index], "held out": explanation.held_out_match[:, index]}
    return {part: matches[matches != EXCLUDED] for part, matches in parts.items()}


def _excluded(explanation: Explanation, part: str, index: int) -> int:
    matches = explanation.trained_match if part == "trained" else explanation.held_out_match
    return int((matches[:, index] == EXCLUDED).sum())


def _hits(explanation: Explanation, matches: NDArray[np.int64]) -> NDArray[np.bool_]:
    hits: NDArray[np.bool_] = matches >= explanation.facts.continuation
    return hits


def _mean(name: str, values: NDArray[np.int64]) -> Row:
    """The mean of a value per passage, with its 95% t-interval over passages."""
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    half = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _interval(name: str, found: Ratio | Share) -> Row:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _ends(bin_: Bin) -> Row:
    return {"first": bin_.first, "last": bin_.last}


def _counts(explanation: Explanation, found: Ratio) -> Row:
    return {"windows": explanation.facts.windows, "blocks": found.blocks}
