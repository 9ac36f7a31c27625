"""The report as one HTML page that fetches nothing.

Names, questions and samples come from texts, models and strangers. What goes into the page is escaped, what its scripts
need is JSON in which no `<` is left, and they write it as text; a policy in the head forbids the page the network.
"""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import plotly.offline
from pandas import DataFrame, isna

from analysis import curves, findings, plots
from analysis.findings import Findings
from gptlab.console import printable

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
SCRIPTS = ("theme.js", "curves.js", "table.js", "figures.js")
SORTED_BY = {
    "step": "step",
    "train loss": "train/loss",
    "val loss": "val/loss",
    "bits/byte": "val/bpb",
    "best val (optimistic)": "best/val_loss",
    "tokens/s": "perf/tokens_per_s",
    "GiB": "perf/peak_mem_gib",
    "time": "elapsed_s",
}
"""Columns of `findings.run_table` that sort by a number of `load.runs()`."""

CHIPS = 12
"""Experiments of which each has a button in the filter; with more of them the search finds them."""


def to_html(found: Findings, checkpoints: DataFrame, heading: str) -> str:
    """The report.

    Args:
        found: What it is about.
        checkpoints: Rows of `load.checkpoints()` for those runs whose weights are to be shown.
        heading: Which runs these are, and when it was made.
    """
    runs, stride = curves.of_runs(found)
    order = found.summary["experiment"].tolist()
    figures = {
        "estimates": plots.estimates(found.summary, found.labels),
        "speed": plots.speed(found.runs, {key: found.labels[key] for key in order}),
    }
    if len(order) > 1:
        figures["differences"] = plots.differences(found.differences.reset_index(), found.labels, order)
    weights = curves.of_weights(checkpoints, dict(zip(found.runs["run"], _run_labels(found), strict=True)))
    data = {
        "runs": runs,
        "figures": {name: json.loads(str(figure.to_json())) for name, figure in figures.items()},
        "weights": weights,
    }
    sections = {
        "experiments": ("Experiments", _experiments(found)),
        "curves": ("Curves", _curves(stride)),
        "runs": ("Runs", _runs(found)),
        "speed": ("Speed and memory", f'<div class="plot" id="speed"></div>{_soft(plots.SPEED)}'),
        "weights": ("Weights", _weights(weights)),
        "samples": ("Samples", _samples(found)),
        "provenance": ("Provenance", _table(findings.provenance_table(found))),
    }
    shown = {name: part for name, part in sections.items() if part[1]}
    links = "".join(f'<a href="#{name}-section">{title}</a>' for name, (title, _) in shown.items())
    answers = "".join(f'<p class="lead">{_text(answer)}</p>' for answer in findings.answers(found))
    cautions = "".join(f"<li>{_text(caution)}</li>" for caution in findings.warnings(found))
    parts = [
        '<a class="skip" href="#experiments-section">Skip to the experiments</a>',
        f'<header><h1>Runs</h1><p class="soft">{_text(heading)}</p>{answers}</header>',
        f'<nav aria-label="Sections"><div>{links}</div></nav><main>',
        f'<section aria-label="Cautions"><h2>Before you believe it</h2><ul class="cautions">{cautions}</ul></section>',
        *(f'<section id="{name}-section"><h2>{title}</h2>{body}</section>' for name, (title, body) in shown.items()),
        f'</main><script type="application/json" id="data">{_json(data)}</script>',
        f"<script>{plotly.offline.get_plotlyjs()}</script>",
        *(f"<script>{_asset(name)}</script>" for name in SCRIPTS),
    ]
    return _page(parts)


def empty(message: str) -> str:
    """A page that says why there is nothing to see."""
    return _page([f"<header><h1>Runs</h1><p>{_text(message)}</p></header>"])


def _experiments(found: Findings) -> str:
    table = findings.experiment_table(found)
    colours = {label: number for number, label in enumerate(found.labels[key] for key in found.summary["experiment"])}
    more = len(found.summary) - len(table)
    note = f" The best {len(table)} of {len(found.summary)} experiments." if more else ""
    beside = '<div class="plot" id="differences"></div>' if len(found.summary) > 1 else ""
    questions = "".join(
        f"<li>{_swatch(colours[found.labels[key]])}<b>{_text(found.labels[key])}</b>: {_text(found.why[key])}</li>"
        for key in found.summary["experiment"].head(len(table))
    )
    return (
        _table(table, {"experiment": colours})
        + _soft(f"{findings.READING} {findings.how(found)}{note}")
        + f'<div class="grid"><div class="plot" id="estimates"></div>{beside}</div>'
        + f'<details><summary>The questions</summary><ul class="soft">{questions}</ul></details>'
    )


def _curves(stride: int) -> str:
    def radios(name: str, legend: str, options: Mapping[str, str]) -> str:
        inputs = "".join(
            f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not number else ""}>{text}</label>'
            for number, (value, text) in enumerate(options.items())
        )
        return f"<fieldset><legend>{legend}&nbsp;</legend>{inputs}</fieldset>"

    boxes = "".join(
        f'<label><input type="checkbox" name="{name}"{checked}>{text}</label>'
        for name, checked, text in (
            ("mean", " checked", "mean and band over seeds"),
            ("logx", "", "log x"),
            ("logy", "", "log y"),
        )
    )
    thinned = f" Of the training losses every {stride}th row is drawn." if stride > 1 else ""
    return (
        f'<form id="curve-controls" class="controls">{radios("y", "Loss", {"val": "validation", "train": "training"})}'
        f"{radios('x', 'over', {'step': 'steps', 'tokens': 'tokens', 'flops': 'FLOPs', 'time': 'time'})}"
        f"<fieldset>{boxes}</fieldset><label>smoothing "
        '<input type="range" name="smoothing" min="0" max="0.95" step="0.05" value="0">'
        '<output id="smoothing-value">off</output></label></form><div class="plot" id="curves"></div>'
        + _soft(
            "The band reaches from the lowest to the highest seed. Smoothing is a moving average; the raw numbers stay "
            f"beneath it. Which runs are drawn is ticked in the table below.{thinned}"
        )
    )


def _runs(found: Findings) -> str:
    table = findings.run_table(found)
    runs, _ = curves.of_runs(found)
    heads = "".join(f'<th scope="col"><button type="button">{_text(name)}</button></th>' for name in table.columns)
    keys = {name: found.runs[column].tolist() for name, column in SORTED_BY.items()}
    keys |= {name: found.runs[name].tolist() for name in table.columns if name in found.runs and name not in keys}
    rows = []
    for number, cells in enumerate(table.itertuples(index=False, name=None)):
        run = runs[number]
        status, label = escape(found.runs["status"].iloc[number]), escape(printable(run["experiment"]))
        ticked = " checked" if run["shown"] else ""
        box = f'<input type="checkbox" aria-label="draw {_text(run["run"])}"{ticked}>'
        body = "".join(
            f"<td{_sort_key(keys[name][number]) if name in keys else ''}>{_text(cell)}</td>"
            for name, cell in zip(table.columns, cells, strict=True)
        )
        rows.append(
            f'<tr data-number="{number}" data-status="{status}" data-experiment="{label}"><td>{box}</td>{body}</tr>'
        )
    labels = list(dict.fromkeys(run["experiment"] for run in runs))
    chips = [("status", status) for status in dict.fromkeys(found.runs["status"])]
    chips += [("experiment", label) for label in labels] if len(labels) <= CHIPS else []
    buttons = "".join(
        f'<button type="button" class="chip" aria-pressed="false" data-kind="{kind}" '
        f'data-value="{escape(printable(value))}">{_text(value)}</button>'
        for kind, value in chips
    )
    return (
        '<div class="controls"><input type="search" id="filter" placeholder="Filter: words of any column" '
        f'aria-label="Filter the runs">{buttons}<output id="count" class="soft"></output></div>'
        '<div class="controls"><button type="button" class="more" id="tick">Draw these</button>'
        '<button type="button" class="more" id="untick">Draw none of these</button></div>'
        '<div class="wide named" tabindex="0" role="region" aria-label="Table of runs"><table id="runs-table">'
        f'<thead><tr><th scope="col">draw</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<button type="button" class="more" id="more" hidden></button>'
        + _soft("Of the spec, only what differs between these runs has a column.")
    )


def _weights(weights: list[dict[str, Any]]) -> str:
    if not weights:
        return ""
    runs = "".join(f'<option value="{number}">{_text(run["run"])}</option>' for number, run in enumerate(weights))
    statistics = "".join(f'<option value="{key}">{text}</option>' for key, text in curves.STATISTICS.items())
    return (
        f'<form id="weight-controls" class="controls"><label>Run <select name="run">{runs}</select></label>'
        f'<label>Statistic <select name="statistic">{statistics}</select></label></form>'
        '<div class="plot" id="weights"></div>'
        + _soft("Each matrix at each kept checkpoint, of the best run of each of the best experiments.")
    )


def _samples(found: Findings) -> str:
    cards = "".join(
        f'<article><h3>{_text(label)}</h3><div class="soft">{_text(about)}</div>'
        f"<pre><b>{_text(prompt)}</b>{_text(text)}</pre></article>"
        for label, about, prompt, text in findings.last_samples(found)
    )
    return f'<div class="grid">{cards}</div>' if cards else ""


def _run_labels(found: Findings) -> list[str]:
    return [
        f"{found.labels[experiment]}, seed {seed}"
        for experiment, seed in zip(found.runs["experiment"], found.runs["seed"], strict=True)
    ]


def _table(table: DataFrame, swatches: Mapping[str, Mapping[str, int]] | None = None) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{_swatch((swatches or {})[name][cell]) if name in (swatches or {}) else ''}{_text(cell)}</td>"
            for name, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.itertuples(index=False, name=None)
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(number: int) -> str:
    return f'<span class="swatch" data-colour="{number}"></span>'


def _sort_key(value: Any) -> str:
    key = "" if value is None or isna(value) else printable(str(value))
    return f' data-value="{escape(key)}"'


def _soft(text: str) -> str:
    return f'<p class="soft">{_text(text)}</p>'


def _text(text: str) -> str:
    return escape(printable(text))


def _json(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("analysis").joinpath("assets", name).read_text(encoding="utf-8")


def _page(parts: list[str]) -> str:
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><title>Runs</title>'
        f"<style>{_asset('report.css')}</style>"
    )
    return "\n".join([f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>', *parts, "</body>\n</html>\n"])
