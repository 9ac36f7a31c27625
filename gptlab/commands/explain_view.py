"""The tables and sentences of `gptlab eval --explain`."""

import math

from gptlab import project
from gptlab.commands import evaluate
from gptlab.commands.explain import Comparison, Explained
from gptlab.explanation import rows
from gptlab.explanation.rows import Row
from gptlab.explanation.sentences import NOTE, counted_in, difference_sentences, sentences
from gptlab.explanation.stored import Explanation
from gptlab.terminal.console import Console
from gptlab.terminal.tables import borderless
from gptlab.terminal.text import plural
from gptlab.training.memorization import PROMPTS

PARTS = ("trained", "held out")


def render(explained: Explained, console: Console) -> None:
    """Print the evaluation, the tables and what they show."""
    evaluate.render(explained.evaluation, console)
    explanation = explained.explanation
    if explained.path:
        console.fact("explained", project.display_path(explained.path))
    elif explained.not_stored:
        console.notice(f"the explanation is not stored: {explained.not_stored}")
    where = counted_in(explanation)
    console.print("\nloss by position: the tokens of context that a prediction sees", style="bold")
    cells = [
        [row["context"], f"{row['tokens']:,}", _with_half(row, "loss", 3), _with_half(row, "bpb", 3)]
        for row in rows.by_position(explanation)
    ]
    _print_table(console, ["context", "tokens", "nats/token", "bits/byte"], cells)
    console.print(f"\nloss by frequency: how often the token occurs in {where}", style="bold")
    cells = [
        [
            row["count"],
            f"{100 * row['share_of_tokens']:.1f}%",
            f"{100 * row['share_of_loss']:.1f}%",
            _with_half(row, "loss", 3),
            _with_half(row, "bpb", 3),
        ]
        for row in rows.by_frequency(explanation)
        if row["tokens"]
    ]
    _print_table(console, ["count", "of tokens", "of loss", "nats/token", "bits/byte"], cells)
    if explanation.facts.prompts:
        _render_memorization(explanation, console)
    console.print()
    for sentence in sentences(explanation):
        console.print(sentence)
    console.print(NOTE, style="dim")
    if explained.not_measured:
        console.notice(explained.not_measured)


def _render_memorization(explanation: Explanation, console: Console) -> None:
    facts = explanation.facts
    heading = f"memorization: passages continued verbatim for {plural(facts.continuation, 'token')}"
    console.print(f"\n{heading}", style="bold")
    cells = [
        [
            f"{row['prompt']}",
            row["part"],
            f"{row['verbatim']:,} of {row['passages']:,}",
            _percents(row, "share"),
            _with_half(row, "match", 1),
        ]
        for row in rows.memorization(explanation)
    ]
    _print_table(console, ["prompt", "passages", "verbatim", "share", "tokens matched"], cells)
    missing = [f"{prompt}" for prompt in PROMPTS if prompt not in facts.prompts]
    if missing:
        too_long = f"prompts of {' and '.join(missing)} tokens with a continuation of {facts.continuation}"
        console.notice(f"{too_long} do not fit into windows of {facts.sequence_length}")
    excluded = [max(row["excluded"] for row in rows.memorization(explanation) if row["part"] == part) for part in PARTS]
    if any(excluded):
        console.notice(
            f"up to {plural(excluded[0], 'training passage')} and {excluded[1]:,} held-out ones are left out, because "
            "the other part of the text has the same words"
        )


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print both losses side by side with their paired differences, and what they show."""
    a, b = comparison.first, comparison.second
    for letter, one in (("A", a), ("B", b)):
        evaluate.render(one.evaluation, console)
        if one.path:
            console.fact("explained", project.display_path(one.path))
        elif one.not_stored:
            console.notice(f"the explanation is not stored: {one.not_stored}")
        console.fact("in tables", letter)
    found = {(row["kind"], row["bin"]): row for row in comparison.differences}
    console.print("\nloss by position, nats/token", style="bold")
    pairs = zip(rows.by_position(a.explanation), rows.by_position(b.explanation), strict=True)
    _print_pairs(console, "context", [(x["context"], x, y, found["position", x["context"]]) for x, y in pairs])
    if any(kind == "frequency" for kind, _ in found):
        console.print(f"\nloss by frequency in {counted_in(a.explanation)}, nats/token", style="bold")
        pairs = zip(rows.by_frequency(a.explanation), rows.by_frequency(b.explanation), strict=True)
        shown = [(x["count"], x, y, found["frequency", x["count"]]) for x, y in pairs if x["tokens"]]
        _print_pairs(console, "count", shown)
    else:
        console.notice("tokens were counted in different texts, so their losses by frequency are not compared")
    cells = [
        [label, _percents(row, "difference", sign="+"), "yes" if row["paired"] else "no", f"{row['n']:,}"]
        for (kind, label), row in found.items()
        if kind == "memorization"
    ]
    if cells:
        console.print("\nmemorization: share of passages continued verbatim, B − A", style="bold")
        _print_table(console, ["prompt", "difference", "same passages", "passages"], cells)
    console.print()
    for sentence in difference_sentences(comparison.differences, "A", "B", counted_in(a.explanation)):
        console.print(sentence)
    console.print(NOTE, style="dim")
    for reason in dict.fromkeys(one.not_measured for one in (a, b) if one.not_measured):
        console.notice(reason)


def _print_pairs(console: Console, heading: str, lines: list[tuple[str, Row, Row, Row]]) -> None:
    cells = [
        [label, _with_half(x, "loss", 3), _with_half(y, "loss", 3), _with_half(row, "difference", 3, sign="+")]
        for label, x, y, row in lines
    ]
    _print_table(console, [heading, "A", "B", "B − A"], cells)


def _print_table(console: Console, headings: list[str], cells: list[list[str]]) -> None:
    table = borderless(*headings, right=tuple(headings[1:]))
    for line in cells:
        table.add_row(*line)
    console.table(table)


def _with_half(row: Row, name: str, digits: int, sign: str = "") -> str:
    if math.isnan(row[name]):
        return "–"
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    interval = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{row[name]:{sign}.{digits}f}{interval}".replace("-", "−")


def _percents(row: Row, name: str, sign: str = "") -> str:
    if math.isnan(row[name]):
        return "–"
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:{sign}.1f}% ({low:{sign}.1f} to {high:{sign}.1f})".replace("-", "−")
