"""The report as one self-contained HTML page; `analysis.rendering` makes it safe."""

import json
import re
from typing import Any, NamedTuple

import plotly.offline
from pandas import DataFrame, isna
from plotly.graph_objects import Figure

from analysis import compare, page_data, palette, plots, unusual
from analysis.caveats import seconds_caveat
from analysis.explained import Section
from analysis.findings import (
    Findings,
    cost_table,
    experiment_table,
    provenance_table,
    run_table,
    speed_table,
)
from analysis.formatting import MISSING
from analysis.questions import Question, questions
from analysis.rendering import asset, render
from analysis.sentences import COST_NOTE, HOW_TO_READ, TREE_NOTE, all_caveats, comparison_note, headlines
from analysis.tree import tree_table

SCRIPTS = ("theme.js", "curves.js", "table.js", "figures.js")

SORT_KEYS = {
    "step": "step",
    "train loss": "train/loss",
    "val loss": "val/loss",
    "bits/byte": "val/bpb",
    "best val (optimistic)": "best/val_loss",
    "tokens/s": "perf/tokens_per_s",
    "GiB": "perf/peak_mem_gib",
    "time": "elapsed_s",
    "CPU time": "cpu_s",
}
"""The column of `load.runs()` that a table's column is sorted by, if their names differ."""

MAX_CHIPS = 12
"""Maximum number of experiments with filter buttons. If there are more, none has one; the search remains."""

LONG_WORD = 16
"""In characters. Columns with longer words may break words anywhere, so that no table is wider than the page."""


CHANGES = "changes from the reference"
"""The column of `findings.run_table` with all settings that differ, if there are many."""


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: str
    """Its CSS classes: `number`, `text`, or `long` for text that may break anywhere; `setting` if phones hide it."""


def to_html(findings: Findings, checkpoints: DataFrame, heading: str, section: Section | None = None) -> str:
    """Return the report.

    Args:
        findings: The report's contents.
        checkpoints: Rows of `load.checkpoints()` for the runs whose weights are displayed.
        heading: The line below the title: the number and place of the runs, and the date.
        section: What the losses are made of; None if no run has an explanation.
    """
    curves, stride = page_data.run_curves(findings)
    differences = page_data.difference_curves(findings)
    weights = page_data.weight_tables(checkpoints, _run_labels(findings))
    order = findings.summary["experiment"].tolist()
    asked = questions(findings)
    figures = _figures(findings, asked) | (section.figures if section else {})
    data = {
        "palette": {"colors": palette.COLORS, "dashes": palette.DASHES},
        "runs": curves,
        "differences": differences,
        "measure": findings.measure.axis,
        "unit": findings.measure.unit,
        "reference": findings.labels[findings.reference],
        "figures": {name: json.loads(str(figure.to_json())) for name, figure in figures.items()},
        "weights": weights,
    }
    experiments = experiment_table(findings)
    labels = list(dict.fromkeys(findings.labels[key] for key in findings.runs["experiment"]))
    chips = [("status", status) for status in dict.fromkeys(findings.runs["status"])]
    chips += [("experiment", label) for label in labels] if len(labels) <= MAX_CHIPS else []
    loss = findings.measure.short
    return render(
        "report.html.j2",
        heading=heading,
        headlines=headlines(findings),
        caveats=all_caveats(findings),
        experiments=_table(_ordered(experiments, [loss])),
        experiment_count=len(order),
        costs=_table(_ordered(cost_table(findings), [loss])),
        cost_note=COST_NOTE,
        seconds_caveat=seconds_caveat(findings.runs),
        notes=f"{HOW_TO_READ} {comparison_note(findings)}",
        questions=asked,
        question_count=len(set(findings.questions.values())),
        rank={experiment: number for number, experiment in enumerate(order)},
        reference=findings.labels[findings.reference],
        stride=stride,
        curves=curves,
        statuses=findings.runs["status"].tolist(),
        runs=_runs(findings),
        tree=_table(_ordered(tree_table(findings.runs), [loss])),
        tree_note=TREE_NOTE,
        unusual=unusual.sentences(findings.metrics),
        unusual_note=unusual.NOTE,
        explained=section,
        explained_differences=_table(section.differences) if section else None,
        memorization=_table(section.memorization) if section else None,
        speed=_sortable(speed_table(findings), findings.runs),
        chips=chips,
        weight_runs=[(number, table["run"]) for number, table in enumerate(weights)],
        statistics=page_data.STATISTICS,
        provenance=_table(provenance_table(findings)),
        data=data,
        plotly=plotly.offline.get_plotlyjs(),
        scripts=[asset(name) for name in SCRIPTS],
    )


def empty(message: str) -> str:
    """Return a page that contains only a message."""
    return render("empty.html.j2", message=message)


def _figures(findings: Findings, asked: list[Question]) -> dict[str, Figure]:
    """The figures by the id of their element: those of all experiments, and one for each question."""
    labels, order = findings.labels, findings.summary["experiment"].tolist()
    differences = findings.differences.reset_index()
    figures = {
        "estimates": plots.estimates(findings.summary, labels, findings.measure),
        "speed": plots.speed(findings.runs, {key: labels[key] for key in order}),
    }
    if len(order) > 1:
        figures["differences"] = plots.differences(differences, labels, order)
        for number, question in enumerate(asked):
            rows = differences[differences["experiment"].isin([key for key, _ in question.answers])]
            if rows["mean"].notna().any():
                figures[f"question-{number}"] = plots.differences(rows, labels, order)
    return figures


def _run_labels(findings: Findings) -> dict[str, str]:
    runs = findings.runs[["run", "experiment", "seed"]].itertuples(index=False, name=None)
    return {run: f"{findings.labels[experiment]}, seed {seed}" for run, experiment, seed in runs}


def _runs(findings: Findings) -> dict[str, Any]:
    """The table of runs. The settings that differ are next to the name, in columns and, for phones, in words."""
    table, runs = run_table(findings), findings.runs
    settings = [name for name in table if name in {CHANGES, *compare.differing_columns(runs)}]
    found = _sortable(_ordered(table, [*settings, findings.measure.short, "val loss"]), runs)
    rows = table[settings].to_dict("records")
    words = [", ".join(str(v) if key == CHANGES else f"{key}={v}" for key, v in row.items()) for row in rows]
    return found | {
        "columns": [Column(name, f"{kind} setting" if name in settings else kind) for name, kind in found["columns"]],
        "in_words": [re.sub(r"(^|, )(model|data|train)\.", r"\1", text) for text in words],
    }


def _ordered(table: DataFrame, names: list[str]) -> DataFrame:
    """The table with the columns whose names start with these after the first one."""
    if table.empty:
        return table
    moved = [column for name in names for column in table.columns[1:] if column.startswith(name)]
    return table[list(dict.fromkeys([table.columns[0], *moved, *table.columns]))]


def _table(table: DataFrame) -> dict[str, Any]:
    """A table of strings, in the form that the macro `data_table` takes."""
    return {
        "columns": [Column(name, _kind(table[name].tolist())) for name in table.columns],
        "rows": table.to_numpy().tolist(),
    }


def _sortable(table: DataFrame, runs: DataFrame) -> dict[str, Any]:
    """A table with one row per run. Each cell is a pair of its text and its sort key."""
    keys = {name: SORT_KEYS.get(name, name) for name in table.columns}
    values = [
        map(_sort_value, runs[key].tolist()) if key in runs else table[name].tolist() for name, key in keys.items()
    ]
    rows = zip(table.to_numpy().tolist(), zip(*values, strict=True), strict=True)
    return _table(table) | {"rows": [list(zip(*row, strict=True)) for row in rows]}


def _sort_value(value: Any) -> str:
    return "" if value is None or isna(value) else str(value)


def _kind(cells: list[str]) -> str:
    if any(_is_number(cell) for cell in cells) or all(cell == MISSING for cell in cells):
        return "number"
    return "long" if any(len(word) > LONG_WORD for cell in cells for word in re.split(r"[\s-]", cell)) else "text"


def _is_number(cell: str) -> bool:
    """Whether a cell starts with a number, as in `5.1 ± 0.2` or `10 of 20`, or is `< 0.001` or `≈ 5.1`."""
    return re.match(r"([<≈] )?[-+]?[\d.,]*\d(e[-+]?\d+)?(\W|$)", cell) is not None
