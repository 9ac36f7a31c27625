"""Figures of runs. Backgrounds are transparent and the colours hold on light and on dark pages."""

import plotly.graph_objects as go
from pandas import DataFrame

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


def _add_line(figure: go.Figure, name: str, x: list[float], y: list[float], number: int) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers" if len(x) <= MARKED else "lines",
        line={
            "color": PALETTE[number % len(PALETTE)],
            "dash": DASHES[number // len(PALETTE) % len(DASHES)],
            "width": 2,
        },
        marker={"size": 5},
    )
