"""`python -m analysis.report`: all runs in one page, `report.html` and `report.md` in the runs directory.

The HTML page stands alone (plotly.js is inside it, nothing is fetched) and follows the reader's light or dark setting.
Names and samples come from texts and models, so all of them are escaped.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

import plotly.graph_objects as go
import plotly.offline
from pandas import DataFrame, Series, isna

from analysis import compare, load, plots
from gptlab import project
from gptlab.console import printable
from gptlab.tracking.files import write_durably

NO_RUNS = "There are no runs yet; make one with: make exp NAME=tiny"
READING = (
    "Losses are nats per token. ± is the standard error over the validation windows: how far the loss on other windows "
    "of the text could be off. Runs with the same yardstick saw the same windows, so much of it cancels between them."
)
LOSSES = {"val/loss": "Validation loss", "train/loss": "Training loss"}

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #656d76; --line: #d8dee4; --page: #ffffff; --box: #f6f8fa;
  --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #8d96a0; --line: #30363d; --page: #0d1117;
  --box: #161b22; --warn: #d29922; } }
body { margin: 2.5rem auto; max-width: 76rem; padding: 0 1.25rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }
p { margin: 0.25rem 0 0.75rem; }
.faint { color: var(--faint); font-size: 0.9rem; }
.caution { border-left: 3px solid var(--warn); padding-left: 0.75rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); padding: 0.4rem 0.8rem; text-align: right; }
th { color: var(--faint); font-weight: 600; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: 0.75rem 1rem;
  font: 0.85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.xtick text, .ytick text, .xtitle, .ytitle, .legendtext { fill: var(--ink) !important; }
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both reports; returns the exit code. The arguments are the command line's by default."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Write report.md and report.html.")
    parser.parse_args(arguments)
    directory = project.runs_directory()
    runs = load.runs()
    metrics, samples = load.metrics(runs), load.samples(runs)
    if runs.empty:
        sys.stdout.write(f"{NO_RUNS}\n")
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "report.md": to_markdown(runs, metrics, samples),
        "report.html": to_html(runs, metrics, samples),
    }.items():
        write_durably(directory / name, content)
        sys.stdout.write(f"{project.shown(directory / name)}\n")
    return 0


def to_markdown(runs: DataFrame, metrics: DataFrame, samples: DataFrame) -> str:
    """The report as Markdown.

    Args:
        runs: Rows of `load.runs()`.
        metrics: Their rows of `load.metrics()`.
        samples: Their rows of `load.samples()`.
    """
    parts = ["# Runs", _inline(_heading(runs))]
    if runs.empty:
        return _paragraphs([*parts, NO_RUNS])
    caution = compare.caution(runs)
    parts += [*([f"**{_inline(caution)}**"] if caution else []), _markdown_table(overview(runs)), READING]
    for column, title in _losses(metrics).items():
        parts += [f"## {title}", _markdown_table(loss_table(runs, metrics, column))]
    for run, about, text in _last_samples(runs, samples):
        parts += [f"## {_inline(run)}", _inline(about), _code_block(text)]
    return _paragraphs(parts)


def to_html(runs: DataFrame, metrics: DataFrame, samples: DataFrame) -> str:
    """The report as one HTML page.

    Args:
        runs: Rows of `load.runs()`.
        metrics: Their rows of `load.metrics()`.
        samples: Their rows of `load.samples()`.
    """
    parts = ["<h1>Runs</h1>", f'<p class="faint">{escape(_heading(runs))}</p>']
    if runs.empty:
        return _page([*parts, f"<p>{escape(NO_RUNS)}</p>"])
    if caution := compare.caution(runs):
        parts.append(f'<p class="caution">{escape(caution)}</p>')
    parts += [_html_table(overview(runs)), f'<p class="faint">{escape(READING)}</p>']
    parts.append(f"<script>{plotly.offline.get_plotlyjs()}</script>")
    for column, title in _losses(metrics).items():
        curves = plots.loss_curves(_in_order(metrics, runs), column=column)
        parts += [f"<h2>{title}</h2>", _plot(curves, column.replace("/", "-"))]
    for run, about, text in _last_samples(runs, samples):
        parts += [f"<h2>{escape(run)}</h2>", f'<p class="faint">{escape(about)}</p>']
        parts.append(f"<pre>{escape(printable(text))}</pre>")
    return _page(parts)


def overview(runs: DataFrame) -> DataFrame:
    """`compare.comparison(runs)` as people read it: every cell a string, a dash where there is nothing."""
    table = compare.comparison(runs)
    shown = {
        "run": table["run"],
        "status": table["status"],
        "step": [
            f"{step}" if step == steps else f"{step} of {steps}" for step, steps in _pairs(table, "step", "steps")
        ],
        "train loss": table["train/loss"].map(_number),
        "val loss": [_number(loss) + _plus_minus(se) for loss, se in _pairs(table, "val/loss", "val/loss_se")],
        "bits per byte": table["val/bpb"].map(_number),
        "tokens/s": table["perf/tokens_per_s"].map("{:,.0f}".format, na_action="ignore"),
        **({"yardstick": table["val/yardstick"]} if "val/yardstick" in table else {}),
        **{column: table[column].map(_setting) for column in compare.what_differs(runs)},
    }
    return DataFrame(shown, dtype="str").fillna("–")


def loss_table(runs: DataFrame, metrics: DataFrame, column: str) -> DataFrame:
    """A loss at a handful of steps and its course as a line of bars, one row per run, the best run first."""
    ordered = _in_order(metrics, runs)
    values = compare.at_steps(ordered, column).map(_number)
    values.columns = [f"step {step}" for step in values.columns]
    courses = Series(compare.sparklines(ordered, column), dtype="str")
    return values.assign(course=courses).rename_axis("run").reset_index()


def _in_order(metrics: DataFrame, runs: DataFrame) -> DataFrame:
    """Rows of metrics, the best run's first."""
    rank = {run: number for number, run in enumerate(compare.ranked(runs)["run"])}
    return metrics.sort_values("run", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def _last_samples(runs: DataFrame, samples: DataFrame) -> list[tuple[str, str, str]]:
    """Run, what it asked, and its newest sample, the best run's first."""
    newest = samples.drop_duplicates("run", keep="last")[["run", "step", "prompt", "text"]]
    table = compare.ranked(runs)[["run", "why"]].merge(newest, on="run")
    return [
        (run, f"The question: {why} A sample after {step} steps:", prompt + text)
        for run, why, step, prompt, text in table.itertuples(index=False, name=None)
    ]


def _losses(metrics: DataFrame) -> dict[str, str]:
    return {column: title for column, title in LOSSES.items() if metrics[column].notna().any()}


def _heading(runs: DataFrame) -> str:
    return f"{len(runs)} in {project.shown(project.runs_directory())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _pairs(table: DataFrame, *columns: str) -> list[tuple[float, float]]:
    return list(table[list(columns)].itertuples(index=False, name=None))


def _number(value: float) -> str:
    return "–" if isna(value) else f"{value:.4f}"


def _plus_minus(error: float) -> str:
    return f" ± {error:.4f}" if math.isfinite(error) else ""


def _setting(value: object) -> str:
    """A spec's value, a hash by its first digits."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text


def _markdown_table(table: DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(_inline(cell) for cell in row)} |" for row in rows)


def _inline(text: str) -> str:
    """The text on one line, without a meaning to Markdown or HTML."""
    line = escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in line)


def _code_block(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).splitlines())


def _paragraphs(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _html_table(table: DataFrame) -> str:
    return f'<div class="wide">{table.to_html(index=False, border=0, escape=True)}</div>'


def _plot(figure: go.Figure, name: str) -> str:
    config = {"displayModeBar": False, "responsive": True}  # the bar offers to send the data to a server
    return str(figure.to_html(config, full_html=False, include_plotlyjs=False, div_id=name))


def _page(parts: list[str]) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Runs</title>'
    top = f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>'
    return "\n".join([top, *parts, "</body>\n</html>\n"])


if __name__ == "__main__":
    sys.exit(main())
