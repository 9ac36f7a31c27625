"""The report as Markdown, for terminals, pull requests and code hosts."""

from html import escape

from pandas import DataFrame, Series

from analysis import compare, findings
from analysis.findings import Findings
from gptlab.console import printable

LOSSES = {"val/loss": "Validation loss", "train/loss": "Training loss"}
MOST_RUNS = 50


def to_markdown(found: Findings, heading: str) -> str:
    """The report.

    Args:
        found: What it is about.
        heading: Which runs these are, and when it was made.
    """
    parts = ["# Runs", _inline(heading), *(f"**{_inline(answer)}**" for answer in findings.answers(found))]
    parts += ["\n".join(f"- {_inline(caution)}" for caution in findings.warnings(found))]
    parts += ["## Experiments", _table(findings.experiment_table(found)), f"{findings.READING} {findings.how(found)}"]
    parts += ["\n".join(f"- {_inline(found.labels[key])}: {_inline(why)}" for key, why in found.why.items())]
    runs = findings.run_table(found)
    parts += ["## Each run", *([f"The best {MOST_RUNS} of {len(runs)}."] if len(runs) > MOST_RUNS else [])]
    parts += [_table(runs.head(MOST_RUNS))]
    for column, title in LOSSES.items():
        if found.metrics[column].notna().any():
            parts += [f"## {title}", _table(loss_table(found, column))]
    for label, about, prompt, text in findings.last_samples(found):
        parts += [f"## {_inline(label)}", _inline(about), _code_block(prompt + text)]
    parts += ["## Provenance", _table(findings.provenance_table(found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def empty(message: str) -> str:
    """A report that says why there is nothing to see."""
    return f"# Runs\n\n{_inline(message)}\n"


def loss_table(found: Findings, column: str) -> DataFrame:
    """A loss at a handful of steps and its course as a line of bars, one row per run, the best run first."""
    best = found.metrics[found.metrics["run"].isin(found.runs["run"].head(MOST_RUNS))]
    values = compare.at_steps(best, column).map(findings.number)
    values.columns = [f"step {step}" for step in values.columns]
    courses = Series(compare.sparklines(best, column), dtype="str")
    return values.assign(course=courses).rename_axis("run").reset_index().fillna(findings.NOTHING)


def _table(table: DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_inline(cell) for cell in row)} |" for row in rows)


def _inline(text: str) -> str:
    """The text on one line, without a meaning to Markdown or HTML."""
    line = escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in line)


def _code_block(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).splitlines())
