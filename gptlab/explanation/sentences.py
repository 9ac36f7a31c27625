"""What an explanation finds, in sentences."""

import math
from typing import Any

from gptlab.explanation import rows
from gptlab.explanation.estimates import BLOCKS
from gptlab.explanation.rows import Row
from gptlab.explanation.stored import Explanation
from gptlab.terminal.text import plural

NOTE = (
    "A window is a stretch of text that the model reads on its own; its first prediction sees one token of context. "
    f"Intervals of losses are 95% t-intervals over at most {BLOCKS} blocks of adjacent windows, because neighboring "
    "windows are about the same thing; those of shares are over passages (Wilson, Newcombe)."
)


def sentences(explanation: Explanation) -> list[str]:
    """Return a sentence each on context, rare tokens and memorization, as far as they were measured."""
    if not math.isfinite(float(explanation.position_loss.sum())):
        return ["The losses are not finite, so they do not tell anything."]
    gain, last = rows.context_gain(explanation), explanation.position_bins[-1].label
    found = [f"With {last} tokens of context the loss is {_compared(-gain.value, gain.half)} than with one."]
    if len(explanation.position_bins) == 1:
        found = ["The windows have one position, so they do not tell what context is worth."]
    rare, where = rows.rare_tokens(explanation), counted_in(explanation)
    carried = f"{_percent(rare['share_of_loss'])}{_plus_minus(rare, 'share_of_loss', 100, 1)} of the loss"
    found.append(
        f"Tokens that occur at most {rare['last']:,} times in {where} are {_percent(rare['share_of_tokens'])} of the "
        f"text and carry {carried}."
    )
    return found + _memorization(explanation)


def difference_sentences(differences: list[Row], first: str, second: str, where: str) -> list[str]:
    """Return a sentence each on where the second model is better or worse than the first.

    Args:
        differences: The result of `rows.differences`.
        first: A name of the first model.
        second: A name of the second model.
        where: Where the tokens were counted.
    """
    of_kind = {kind: _known(differences, kind) for kind in ("context", "position", "frequency", "memorization")}
    found = []
    if ends := of_kind["position"]:
        near, far = ends[0], ends[-1]
        found.append(
            f"{second}'s loss is {_lower(near)} than {first}'s with {near['bin']} token of context, and {_lower(far)} "
            f"with {far['bin']}."
        )
    if ends := of_kind["frequency"]:
        rare, common = ends[0], ends[-1]
        found.append(
            f"For tokens that {_occur(rare['bin'])} in {where} it is {_lower(rare)}, and for those that "
            f"{_occur(common['bin'])}, {_lower(common)}."
        )
    trained = [row for row in of_kind["memorization"] if row["bin"].endswith("trained")]
    if trained:
        row = trained[-1]
        found.append(
            f"With a prompt of {row['bin'].partition(',')[0]} tokens, {second} continues "
            f"{100 * abs(row['difference']):.1f} percentage points {'more' if row['difference'] >= 0 else 'fewer'} of "
            f"its training passages verbatim than {first} (95% interval of the difference {_signed(row, 'low')} to "
            f"{_signed(row, 'high')})."
        )
    return found


def counted_in(explanation: Explanation) -> str:
    """Where the tokens were counted."""
    return "the training part" if explanation.facts.counted_in_training_part else "the text itself"


def _memorization(explanation: Explanation) -> list[str]:
    if not explanation.facts.prompts:
        return []
    *_, trained, held_out = rows.memorization(explanation)
    if not trained["passages"]:
        return ["No training passage is left whose words do not occur in the held-out part as well."]
    control = f"and {_share(held_out)} of {plural(held_out['passages'], 'held-out passage')}"
    return [
        f"With a prompt of {trained['prompt']} tokens, {_share(trained)} of "
        f"{plural(trained['passages'], 'training passage')} are continued verbatim for {trained['continuation']} "
        f"tokens, {control if held_out['passages'] else 'and no held-out passage is left to compare with'}."
    ]


def _known(differences: list[Row], kind: str) -> list[Row]:
    return [row for row in differences if row["kind"] == kind and math.isfinite(row["difference"])]


def _occur(label: str) -> str:
    return "never occur" if label == "0" else f"occur {label} times"


def _lower(row: Row) -> str:
    return _compared(row["difference"], (row["difference_high"] - row["difference_low"]) / 2)


def _compared(difference: float, half: float) -> str:
    interval = f" ± {half:.2f}" if math.isfinite(half) else ""
    return f"{abs(difference):.2f}{interval} nats per token {'lower' if difference <= 0 else 'higher'}"


def _signed(row: Row, end: str) -> str:
    return f"{100 * row[f'difference_{end}']:+.1f}".replace("-", "−")


def _share(row: Row) -> str:
    return f"{_percent(row['share'])} ({100 * row['share_low']:.1f} to {_percent(row['share_high'])})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _plus_minus(row: dict[str, Any], name: str, scale: float, digits: int) -> str:
    half = scale * (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return f" ± {half:.{digits}f}%" if math.isfinite(half) else ""
