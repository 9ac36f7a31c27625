"""The comparison of experiments as one table for papers and pull requests, in Markdown or LaTeX."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pandas import DataFrame, isna

from analysis import formatting, markdown
from analysis.findings import Findings

FORMATS = ("markdown", "latex")

LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: f"{{{c}}}" for c in "[]*"},  # at the beginning of a row, they would be options of the row before
    "−": r"\ensuremath{-}",
    "±": r"\ensuremath{\pm}",
    "∞": r"\ensuremath{\infty}",
    "–": r"\textendash{}",
}
"""What stands for characters that LaTeX interprets, and for those of a table that are not ASCII."""

PREAMBLE = (
    r"% needs \usepackage{booktabs}; \pm is half of the 95% t-interval over seeds; p is corrected for the number of "
    "comparisons (Holm)"
)


def comparison(findings: Findings, kind: str) -> str:
    """The comparison of experiments as a table, the best first.

    Args:
        findings: The report's contents.
        kind: One of `FORMATS`. LaTeX needs the package booktabs.
    """
    table = _comparison(findings)
    return markdown.table(table) if kind == "markdown" else to_latex(table)


def _comparison(findings: Findings) -> DataFrame:
    """One row per experiment: its mean, and its difference from the reference."""
    measure, rows = findings.measure, []
    several = len(findings.summary) > 1
    for row in findings.summary.to_dict("records"):
        cells = {
            "Experiment": findings.labels[row["experiment"]],
            "Seeds": f"{row['n']}",
            f"{measure.name.capitalize()} at step {formatting.count(findings.budget)}": _mean(row),
        }
        rows.append(cells | (_difference(findings, row["experiment"]) if several else {}))
    return DataFrame(rows, dtype="str")


def _mean(row: Mapping[Any, Any]) -> str:
    return formatting.loss(row["mean"]) + _half_interval(row)


def _difference(findings: Findings, experiment: str) -> dict[str, str]:
    names = (f"Difference from {findings.labels[findings.reference]}", "p")
    if experiment == findings.reference:
        return dict.fromkeys(names, formatting.MISSING)
    row: Mapping[Any, Any] = findings.differences.loc[experiment].to_dict()
    if isna(row["mean"]) or math.isinf(row["mean"]):
        return dict.fromkeys(names, formatting.MISSING)
    value = formatting.signed(row["mean"]) + _half_interval(row)
    return dict(zip(names, (value, formatting.p_value(row["p_holm"])), strict=True))


def _half_interval(row: Mapping[Any, Any]) -> str:
    return "" if isna(row["low"]) else f" ± {(row['high'] - row['low']) / 2:.4f}"


def to_latex(table: DataFrame) -> str:
    """A table of strings as a LaTeX `tabular` with the rules of booktabs. All columns but the first are numbers."""
    rows = [f"{' & '.join(map(escape_latex, row))} \\\\" for row in [list(table.columns), *table.to_numpy().tolist()]]
    columns = "l" + "r" * (len(table.columns) - 1)
    lines = [PREAMBLE, f"\\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is. A character that pdfLaTeX may not have is its code point, such as `[U+4E2D]`."""
    line = " ".join(text.split())
    escaped = [LATEX.get(c, c if c.isascii() and c.isprintable() else f"{{[}}U+{ord(c):04X}{{]}}") for c in line]
    return re.sub("-(?=-)", "-{}", "".join(escaped))  # `--` would be a dash
