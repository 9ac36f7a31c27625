"""Figures of runs. Backgrounds are transparent and the colours hold on light and on dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from pandas import DataFrame, isna

from analysis.stats import Estimate
from gptlab.console import printable
from gptlab.tracking.metrics import COLUMNS

PALETTE = ("#2f7fc1", "#e08214", "#1b9e77", "#d6478f", "#7d6bd0", "#b8860b", "#56a9d6", "#d1495b")
DASHES = ("solid", "dash", "dot", "dashdot")
GRID = "rgba(128, 128, 128, 0.25)"
MARKED = 60
"""Lines of at most so many points show them: a validation loss has few, and one alone has no line."""


def loss_curves(metrics: DataFrame, x: str = "step", column: str = "train/loss") -> go.Figure:
    """One line per run, in the order of `metrics`; a run keeps its colour whatever the column.

    Args:
        metrics: Rows of `load.metrics()`.
        x: The column along the horizontal axis: `step`, `tokens`, `epoch` or `elapsed_s`.
        column: The column along the vertical axis, such as `val/loss`; rows without it are left out.
    """
    figure = _figure(x, f"{column}, {COLUMNS[column].partition(',')[0]}")
    for number, run in enumerate(metrics["run"].unique()):
        rows = metrics[metrics["run"] == run].dropna(subset=[x, column])
        if len(rows):
            _add_line(figure, run, rows[x].tolist(), rows[column].tolist(), number)
    return figure


def weight_rms(checkpoints: DataFrame, step: int | None = None) -> go.Figure:
    """The RMS of the decoder blocks' matrices by depth, one line per kind of matrix.

    Args:
        checkpoints: Rows of `load.checkpoints()` of one run.
        step: Which checkpoint; the newest where None.
    """
    figure = _figure("decoder block", "RMS of the weights")
    step = checkpoints["step"].max() if step is None else step
    matrices = checkpoints["layer"].notna() & checkpoints["shape"].str.contains("x")
    rows = checkpoints[matrices & (checkpoints["step"] == step)].sort_values("layer")
    kinds = rows.groupby(rows["tensor"].str.replace(r"^blocks\.\d+\.", "", regex=True), sort=False)
    for number, (kind, group) in enumerate(kinds):
        _add_line(figure, str(kind), group["layer"].tolist(), group["rms"].tolist(), number)
    figure.update_xaxes(dtick=1)
    return figure


def estimates(summary: DataFrame, labels: Mapping[str, str], most: int = 20) -> go.Figure:
    """Mean and 95% interval of each experiment, the lowest on top.

    Args:
        summary: As `replicates.summary` gives it.
        labels: What to call each experiment.
        most: How many of the best.
    """
    title = "validation loss: mean, 95% interval over seeds"
    return _intervals(title, summary, labels, summary["experiment"].tolist(), most)


def differences(table: DataFrame, labels: Mapping[str, str], order: Sequence[str], most: int = 20) -> go.Figure:
    """Each experiment's difference to the reference with its 95% interval, the lowest on top, and a line at none.

    Args:
        table: As `replicates.differences` gives it.
        labels: What to call each experiment.
        order: All experiments, in the order of their colours.
        most: How many of the best.
    """
    title = "difference to the reference, 95% interval"
    return _intervals(title, table, labels, order, most).add_vline(x=0, line_color="#808080", line_dash="dot")


def _intervals(title: str, table: DataFrame, labels: Mapping[str, str], order: Sequence[str], most: int) -> go.Figure:
    figure = _figure(title, "")
    rows = table[table["mean"].map(math.isfinite)].head(most)
    for row in rows.to_dict("records"):
        error = None if isna(row["high"]) else row["high"] - row["mean"]
        figure.add_scatter(
            x=[row["mean"]],
            y=[plain(labels[row["experiment"]])],
            error_x={"type": "data", "array": [error], "thickness": 2, "width": 5},
            mode="markers",
            marker={"size": 10, "color": PALETTE[order.index(row["experiment"]) % len(PALETTE)]},
            hovertemplate="%{y}: %{x:.4f}" + ("" if error is None else f" ± {error:.4f}") + "<extra></extra>",
            showlegend=False,
        )
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=110 + 34 * len(rows))


SPEED = "Each point is a run: training tokens per second over the largest memory in use."


def speed(runs: DataFrame, labels: Mapping[str, str]) -> go.Figure:
    """Throughput over memory, one point per run.

    Args:
        runs: Rows of `load.runs()`.
        labels: What to call each experiment; their colours are in this order.
    """
    figure = _figure("largest memory in use, GiB", "training tokens per second")
    for number, experiment in enumerate(labels):
        rows = runs[runs["experiment"] == experiment]
        figure.add_scatter(
            x=rows["perf/peak_mem_gib"].tolist(),
            y=rows["perf/tokens_per_s"].tolist(),
            text=[plain(run) for run in rows["run"]],
            name=plain(labels[experiment]),
            mode="markers",
            marker={"size": 10, "color": PALETTE[number % len(PALETTE)], "opacity": 0.85},
            hovertemplate="%{text}<br>%{y:,.0f} tokens/s<br>%{x:.2f} GiB<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(height=380, legend={"orientation": "h", "y": -0.32})


def heat_map(checkpoints: DataFrame, statistic: str) -> go.Figure:
    """A statistic of each matrix at each kept checkpoint.

    Args:
        checkpoints: Rows of `load.checkpoints()` of one run.
        statistic: A column, such as `stable_rank`.
    """
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


def over_setting(values: DataFrame, setting: str, optimum: Estimate) -> go.Figure:
    """The loss of each run over a setting, the mean over seeds as a line, and the optimum with its interval.

    Args:
        values: One row per run with `run`, `value` (the loss) and the column `setting`, above zero.
        setting: Such as `train.learning_rate`.
        optimum: As `optimum.over_seeds` gives it.
    """
    figure = _figure(setting, "validation loss, nats per token")
    means = values.groupby(setting)["value"].mean()
    figure.add_scatter(
        x=means.index.tolist(), y=means.tolist(), name="mean over seeds", mode="lines", line={"color": PALETTE[0]}
    )
    figure.add_scatter(
        x=values[setting].tolist(),
        y=values["value"].tolist(),
        text=[plain(run) for run in values["run"]],
        name="runs",
        mode="markers",
        marker={"color": PALETTE[0], "size": 7, "opacity": 0.6},
    )
    if math.isfinite(optimum.low) and math.isfinite(optimum.high):
        figure.add_vrect(x0=optimum.low, x1=optimum.high, fillcolor=PALETTE[1], opacity=0.2, line_width=0)
    if math.isfinite(optimum.mean):
        figure.add_vline(x=optimum.mean, line_color=PALETTE[1])
    return figure.update_xaxes(type="log")


def spectra(singular_values: Mapping[str, Sequence[float]]) -> go.Figure:
    """Singular values of matrices, the largest first, on a logarithmic scale.

    Args:
        singular_values: By what to call the matrix.
    """
    figure = _figure("number, the largest first", "singular value")
    for number, (name, values) in enumerate(singular_values.items()):
        _add_line(figure, name, list(range(1, len(values) + 1)), [float(value) for value in values], number)
    return figure.update_yaxes(type="log")


def over_training(checkpoints: DataFrame, statistic: str) -> go.Figure:
    """A statistic of each kind of matrix over the kept checkpoints, averaged over the decoder blocks.

    Args:
        checkpoints: Rows of `load.checkpoints()` of one run.
        statistic: A column, such as `update`.
    """
    figure = _figure("checkpoint at step", statistic)
    matrices = checkpoints[checkpoints["shape"].str.contains("x")].dropna(subset=statistic)
    kinds = matrices["tensor"].str.replace(r"^blocks\.\d+\.", "", regex=True)
    for number, (kind, rows) in enumerate(matrices.groupby(kinds, sort=True)):
        means = rows.groupby("step")[statistic].mean()
        _add_line(figure, str(kind), [str(step) for step in means.index], means.tolist(), number)
    return figure.update_xaxes(type="category")


def plain(text: str) -> str:
    """Text that plotly, which reads some HTML, shows as it is."""
    return escape(printable(text), quote=False)


def _figure(x: str, y: str) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    layout = {
        "template": "none",
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": "#808080", "family": "system-ui, sans-serif"},
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
        mode="lines+markers" if len(x) <= MARKED else "lines",
        line={
            "color": PALETTE[number % len(PALETTE)],
            "dash": DASHES[number // len(PALETTE) % len(DASHES)],
            "width": 2,
        },
        marker={"size": 5},
    )
