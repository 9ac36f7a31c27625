"""Figures of runs for notebooks and the report, with transparent backgrounds for light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from pandas import DataFrame, isna

from analysis import palette
from analysis.choices import check_choice, check_column
from analysis.measures import LOSS, Measure
from analysis.stats import Estimate
from gptlab.terminal.text import printable
from gptlab.tracking.metrics import COLUMNS

GRID = "rgba(128, 128, 128, 0.25)"
GRAY = "#808080"

MAX_MARKERS = 60
"""Lines with more points have no markers. With few points markers help, and a single point is invisible without one."""

BIN_TITLES = {
    "context": "tokens of context that a prediction sees",
    "count": "how often the token occurs in the training part",
}
"""The titles of the axes of columns with bins."""

LOSS_TITLES = {"loss": "loss, nats per token", "bpb": "loss, bits per byte"}

MAX_EXPERIMENTS = 20
"""Maximum number of experiments in a figure of intervals."""


def loss_curves(metrics: DataFrame, x: str = "step", column: str = "train/loss") -> go.Figure:
    """A curve for each run, in the order of `metrics`. A run has the same color in every such figure.

    Args:
        metrics: Rows of `load.metrics()`.
        x: Column on the horizontal axis: `step`, `tokens`, `flops` or `elapsed_s`.
        column: Column on the vertical axis, such as `val/loss`. Rows without it are left out.
    """
    check_column("x", x, metrics)
    check_choice("column", column, [name for name in COLUMNS if name in metrics])
    figure = _figure(x, f"{column}, {COLUMNS[column].partition(',')[0]}")
    for number, run in enumerate(metrics["run"].unique()):
        rows = metrics[metrics["run"] == run].dropna(subset=[x, column])
        if len(rows):
            _add_line(figure, run, rows[x].tolist(), rows[column].tolist(), number)
    return figure


def estimates(summary: DataFrame, labels: Mapping[str, str], measure: Measure = LOSS) -> go.Figure:
    """Mean and 95% interval of the best experiments, the lowest on top.

    Args:
        summary: The result of `replicates.summary`.
        labels: The label of each experiment.
        measure: What was summarized.
    """
    title = f"{measure.name}<br>mean, 95% interval"
    return _intervals(title, summary, labels, summary["experiment"].tolist())


def differences(table: DataFrame, labels: Mapping[str, str], order: Sequence[str]) -> go.Figure:
    """Differences from the reference with 95% intervals, the lowest on top, and a line at zero.

    Args:
        table: The result of `replicates.differences`.
        labels: The label of each experiment.
        order: All experiments, in the order of their colors.
    """
    title = "difference<br>mean, 95% interval"
    return _intervals(title, table, labels, order).add_vline(x=0, line_color=GRAY, line_dash="dot")


def _intervals(title: str, table: DataFrame, labels: Mapping[str, str], order: Sequence[str]) -> go.Figure:
    figure = _figure(title, "")
    rows = table[table["mean"].map(math.isfinite)].head(MAX_EXPERIMENTS)
    for row in rows.to_dict("records"):
        error = None if isna(row["high"]) else row["high"] - row["mean"]
        figure.add_scatter(
            x=[row["mean"]],
            y=[plain(labels[row["experiment"]])],
            error_x={"type": "data", "array": [error], "thickness": 2, "width": 5},
            mode="markers",
            marker={"size": 10, "color": palette.color(order.index(row["experiment"]))},
            hovertemplate="%{y}: %{x:.4f}" + ("" if error is None else f" ± {error:.4f}") + "<extra></extra>",
            showlegend=False,
        )
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=110 + 34 * len(rows))


def speed(runs: DataFrame, labels: Mapping[str, str]) -> go.Figure:
    """Throughput against peak memory, with a point for each run.

    Args:
        runs: Rows of `load.runs()`.
        labels: The label of each experiment, in the order of their colors.
    """
    figure = _figure("peak memory, GiB", "training tokens per second")
    for number, experiment in enumerate(labels):
        rows = runs[runs["experiment"] == experiment]
        figure.add_scatter(
            x=rows["perf/peak_mem_gib"].tolist(),
            y=rows["perf/tokens_per_s"].tolist(),
            text=[plain(run) for run in rows["run"]],
            name=plain(labels[experiment]),
            mode="markers",
            marker={"size": 10, "color": palette.color(number), "opacity": 0.85},
            hovertemplate="%{text}<br>%{y:,.0f} tokens/s<br>%{x:.2f} GiB<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(height=380, legend={"orientation": "h", "y": -0.32})


def heat_map(checkpoints: DataFrame, statistic: str) -> go.Figure:
    """A statistic of each matrix at each kept checkpoint.

    Args:
        checkpoints: Rows of `load.checkpoints()` of one run.
        statistic: Column of `load.checkpoints()`, such as `stable_rank`.
    """
    check_column("statistic", statistic, checkpoints)
    matrices = checkpoints[checkpoints["shape"].str.contains("x")]
    order = matrices.drop_duplicates("tensor").sort_values(["layer", "tensor"], na_position="first")["tensor"]
    table = matrices.pivot_table(index="tensor", columns="step", values=statistic, dropna=False).reindex(order)
    figure = _figure("checkpoint at step", "")
    figure.add_heatmap(
        z=[[value if math.isfinite(value) else None for value in row] for row in table.to_numpy("float64").tolist()],
        x=[str(step) for step in table.columns],
        y=[plain(name.removesuffix(".weight")) for name in order],
        colorscale="Viridis",
        colorbar={"title": {"text": statistic, "side": "right"}, "thickness": 12},
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure.update_layout(height=min(1400, 120 + 24 * len(order)))


def loss_over_setting(values: DataFrame, setting: str, optimum: Estimate) -> go.Figure:
    """The loss of each run against a setting, with the mean over seeds as a line, and the optimum with its interval.

    Args:
        values: One row per run with `run`, `value` (the loss) and the positive column `setting`.
        setting: Column of `load.runs()`, such as `train.learning_rate`.
        optimum: The result of `optimum.over_seeds`.
    """
    check_column("setting", setting, values)
    figure = _figure(setting, "validation loss, nats per token")
    means = values.groupby(setting)["value"].mean()
    runs_color, optimum_color = palette.color(0), palette.color(1)
    figure.add_scatter(
        x=means.index.tolist(), y=means.tolist(), name="mean over seeds", mode="lines", line={"color": runs_color}
    )
    figure.add_scatter(
        x=values[setting].tolist(),
        y=values["value"].tolist(),
        text=[plain(run) for run in values["run"]],
        name="runs",
        mode="markers",
        marker={"color": runs_color, "size": 7, "opacity": 0.6},
    )
    if math.isfinite(optimum.low) and math.isfinite(optimum.high):
        figure.add_vrect(x0=optimum.low, x1=optimum.high, fillcolor=optimum_color, opacity=0.2, line_width=0)
    if math.isfinite(optimum.mean):
        figure.add_vline(x=optimum.mean, line_color=optimum_color)
    return figure.update_xaxes(type="log", dtick=1, exponentformat="e")  # 1e-4 and not 100µ


def loss_by_bin(table: DataFrame, bins: str, value: str = "loss", colors: Mapping[str, int] | None = None) -> go.Figure:
    """The loss in bins of positions or frequencies with 95% intervals, a curve for each run.

    Args:
        table: Rows of `explain.by_position()` or `explain.by_frequency()`, one checkpoint of each run. Bins without
            tokens are left out.
        bins: The column with the bins: `context` or `count`.
        value: `loss`, or `bpb` for bits per byte, which compare across tokenizers.
        colors: The number of each run's color; by default the runs have different ones.
    """
    check_choice("bins", bins, list(BIN_TITLES))
    check_choice("value", value, list(LOSS_TITLES))
    figure = _figure(BIN_TITLES[bins], LOSS_TITLES[value])
    known = table.dropna(subset=value)
    for number, run in enumerate(known["run"].unique()):
        rows = known[known["run"] == run]
        _add_line(figure, run, rows[bins].tolist(), rows[value].tolist(), number if colors is None else colors[run])
        half = ((rows[f"{value}_high"] - rows[f"{value}_low"]) / 2).fillna(0)
        figure.data[-1].update(error_y={"type": "data", "array": half.tolist(), "thickness": 1, "width": 3})
    order = known.drop_duplicates(bins).sort_values(["first", "last"])[bins].tolist()
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return figure.update_layout(legend={"orientation": "h", "y": -0.3})


def spectra(singular_values: Mapping[str, Sequence[float]]) -> go.Figure:
    """Singular values of matrices in descending order, on a logarithmic scale.

    Args:
        singular_values: The singular values by the name of the matrix.
    """
    figure = _figure("number, the largest first", "singular value")
    for number, (name, values) in enumerate(singular_values.items()):
        _add_line(figure, name, list(range(1, len(values) + 1)), [float(value) for value in values], number)
    return figure.update_yaxes(type="log")


def statistic_over_training(checkpoints: DataFrame, statistic: str) -> go.Figure:
    """A statistic of each kind of matrix against the kept checkpoints, averaged over the decoder blocks.

    Args:
        checkpoints: Rows of `load.checkpoints()` of one run.
        statistic: Column of `load.checkpoints()`, such as `update`.
    """
    check_column("statistic", statistic, checkpoints)
    figure = _figure("checkpoint at step", statistic)
    matrices = checkpoints[checkpoints["shape"].str.contains("x")].dropna(subset=statistic)
    kinds = matrices["tensor"].str.replace(r"^blocks\.\d+\.", "", regex=True)
    for number, (kind, rows) in enumerate(matrices.groupby(kinds, sort=True)):
        means = rows.groupby("step")[statistic].mean()
        _add_line(figure, str(kind), [str(step) for step in means.index], means.tolist(), number)
    return figure.update_xaxes(type="category")


def plain(text: str) -> str:
    """Escape a text for plotly, which interprets some HTML in names and labels."""
    return escape(printable(text), quote=False)


def _figure(x: str, y: str) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    layout = {
        "template": "none",
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": GRAY, "family": "system-ui, sans-serif"},
        "height": 420,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "showlegend": True,
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
    }
    return go.Figure(layout=layout)


def _add_line(figure: go.Figure, name: str, x: list[Any], y: list[float], number: int) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=plain(name),
        mode="lines+markers" if len(x) <= MAX_MARKERS else "lines",
        line={"color": palette.color(number), "dash": palette.dash(number), "width": 2},
        marker={"size": 5},
    )
