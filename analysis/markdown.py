"""The report as Markdown, for terminals, pull requests and code hosts."""

from html import escape

from pandas import DataFrame, Series

from analysis import compare, formatting, unusual
from analysis.caveats import seconds_caveat
from analysis.explained import Section
from analysis.findings import (
    Findings,
    cost_table,
    experiment_table,
    newest_samples,
    provenance_table,
    run_table,
    speed_table,
)
from analysis.sentences import COST_NOTE, HOW_TO_READ, TREE_NOTE, all_caveats, comparison_note, headlines
from analysis.tree import tree_table
from analysis.verdicts import verdicts
from gptlab.terminal.text import printable

LOSSES = {"val/loss": "Validation loss", "val/bpb": "Bits per byte", "train/loss": "Training loss"}
MAX_RUNS = 50


def to_markdown(findings: Findings, heading: str, section: Section | None = None) -> str:
    """Return the report.

    Args:
        findings: The report's contents.
        heading: The line below the title: the number and place of the runs, and the date.
        section: What the losses are made of; None if no run has an explanation.
    """
    parts = ["# Runs", _inline(heading), *(f"**{_inline(line)}**" for line in headlines(findings))]
    parts += ["## Caveats", _list([_inline(caveat) for caveat in all_caveats(findings)])]
    parts += ["## Experiments", table(experiment_table(findings))]
    costs = cost_table(findings)
    parts += [table(costs), COST_NOTE, _inline(seconds_caveat(findings.runs) or "")] if len(costs.columns) > 1 else []
    parts += [f"{HOW_TO_READ} {_inline(comparison_note(findings))}"]
    answers = verdicts(findings)
    questions = [f"{findings.labels[key]}: {why} {answers[key]}" for key, why in findings.questions.items()]
    parts += [_list([_inline(question) for question in questions])]
    tree = tree_table(findings.runs)
    parts += ["## Branches", table(tree.head(MAX_RUNS)), TREE_NOTE] if len(tree) else []
    runs = run_table(findings)
    parts += ["## Each run", *([f"The best {MAX_RUNS} of {len(runs)}."] if len(runs) > MAX_RUNS else [])]
    parts += [table(runs.head(MAX_RUNS))]
    steps = unusual.sentences(findings.metrics)
    parts += ["## Unusual steps", unusual.NOTE, _list([_inline(step) for step in steps])] if steps else []
    parts += _explained(section) if section else []
    parts += ["## Speed and memory", table(speed_table(findings).head(MAX_RUNS))]
    for column in (findings.measure.column, "train/loss"):
        if findings.metrics[column].notna().any():
            parts += [f"## {LOSSES[column]}", table(loss_table(findings, column))]
    for sample in newest_samples(findings):
        parts += [f"## {_inline(sample.label)}", _inline(sample.description), _code_block(sample.prompt + sample.text)]
    parts += ["## Provenance", table(provenance_table(findings))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _explained(section: Section) -> list[str]:
    """What the losses are made of."""
    tables = {
        "By tokens of context": section.by_position,
        "By count in the training part": section.by_frequency,
        "Differences from the reference": section.differences,
        "Passages continued verbatim": section.memorization,
    }
    best = f"{_inline(section.best)}, the best run that was explained:"
    parts = ["## What the loss is made of", best, _list([_inline(line) for line in section.sentences])]
    parts += [part for title, cells in tables.items() if len(cells) for part in (f"### {title}", table(cells))]
    return [*parts, section.note]


def empty(message: str) -> str:
    """Return a report that contains only a message."""
    return f"# Runs\n\n{_inline(message)}\n"


def loss_table(findings: Findings, column: str) -> DataFrame:
    """A loss at a few steps and as a sparkline, one row per run, best first."""
    best = findings.metrics[findings.metrics["run"].isin(findings.runs["run"].head(MAX_RUNS))]
    values = compare.at_steps(best, column).map(formatting.loss)
    values.columns = [f"step {step}" for step in values.columns]
    sparklines = Series(compare.sparklines(best, column), dtype="str")
    return values.assign(curve=sparklines).rename_axis("run").reset_index().fillna(formatting.MISSING)


def table(cells: DataFrame) -> str:
    """A table of strings as Markdown."""
    rows = [list(cells.columns), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_inline(cell) for cell in row)} |" for row in rows)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _inline(text: str) -> str:
    """The text on one line, with everything escaped that Markdown or HTML would interpret."""
    line = escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in line)


def _code_block(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).splitlines())
