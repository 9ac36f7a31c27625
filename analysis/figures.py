"""Figures of a comparison for papers: one column wide, on white, distinguishable in print and by the color-blind.

They are drawn with matplotlib, which needs no browser. A figure has the same bytes whenever it is drawn from the same
runs with the same version of matplotlib.
"""

import io
import math
import os
from collections.abc import Callable
from typing import Any

from analysis import palette, stats
from analysis.findings import Findings
from analysis.page_data import difference_curves
from gptlab import project
from gptlab.terminal.text import printable

os.environ.setdefault("MPLCONFIGDIR", str(project.cache_directory() / "matplotlib"))  # else a cache in the home

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.35, 2.4
"""In inches. A column of two is 3.25 to 3.5 inches wide at most conferences."""
ROW_HEIGHT = 0.2
MAX_EXPERIMENTS = 7
"""Maximum number of curves or intervals: more cannot be told apart in a column."""
INITIAL_FALL = 0.1
"""The loss axis begins after this fraction of the steps, in which the loss falls from that of a uniform guess."""

THEME: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 6,
    "legend.handlelength": 3,  # long enough for a whole dash
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "gptlab",
    "text.parse_math": False,  # a name may contain dollar signs
}


def draw_all(findings: Findings) -> dict[str, bytes]:
    """The validation loss, and with several experiments the differences and their course, by file name."""
    drawings: dict[str, Callable[[Findings], Figure]] = {"validation-loss": validation_loss}
    if len(findings.differences):
        drawings |= {"differences": differences, "differences-over-steps": differences_over_steps}
    return {file: content for name, function in drawings.items() for file, content in draw(findings, name, function)}


def draw(findings: Findings, name: str, function: Callable[[Findings], Figure]) -> list[tuple[str, bytes]]:
    """A figure as SVG and as PNG, with their file names."""
    with mpl.rc_context(THEME):
        figure = function(findings)
        return [
            (f"{name}.svg", _saved(figure, format="svg", metadata={"Date": None})),
            (f"{name}.png", _saved(figure, format="png", dpi=300, metadata={"Software": None})),
        ]


def validation_loss(findings: Findings) -> Figure:
    """The mean over seeds of each experiment's validation loss over steps, with its 95% interval as a band."""
    figure, axes = _figure("step", findings.measure.axis)
    visible: list[float] = []
    for number, experiment in enumerate(findings.summary["experiment"].head(MAX_EXPERIMENTS)):
        steps = _means(findings, experiment)
        _add_curve(axes, findings.labels[experiment], number, steps)
        visible += [bound for step, *bounds in steps for bound in bounds if step >= INITIAL_FALL * findings.budget]
    finite = [value for value in visible if math.isfinite(value)]
    if finite:
        margin = 0.05 * (max(finite) - min(finite)) or 0.01
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.legend()
    return figure


def differences(findings: Findings) -> Figure:
    """Each experiment's difference from the reference with its 95% interval, the lowest on top."""
    rows = findings.differences[np.isfinite(findings.differences["mean"].astype(float))].head(MAX_EXPERIMENTS)
    figure, axes = _figure(_difference_axis(findings), "", height=0.7 + ROW_HEIGHT * max(len(rows), 1))
    for place, (experiment, row) in enumerate(rows.iterrows()):
        half = 0.0 if math.isnan(row["high"]) else row["high"] - row["mean"]
        color = palette.print_color(_number(findings, experiment))
        axes.errorbar([row["mean"]], [place], xerr=[half], color=color, fmt="o", capsize=2)
    axes.set_yticks(range(len(rows)), [printable(findings.labels[experiment]) for experiment in rows.index])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.axvline(0, color="0.3", linewidth=0.6, linestyle=":")
    return figure


def differences_over_steps(findings: Findings) -> Figure:
    """Each experiment's difference from the reference over steps, with its 95% interval as a band."""
    figure, axes = _figure("step", _difference_axis(findings))
    curves = sorted(difference_curves(findings), key=lambda curve: int(curve["color"]))[:MAX_EXPERIMENTS]
    for curve in curves:
        points = zip(curve["step"], curve["mean"], curve["low"], curve["high"], strict=True)
        _add_curve(axes, curve["experiment"], curve["color"], [point for point in points if point[1] is not None])
    axes.axhline(0, color="0.3", linewidth=0.6, linestyle=":")
    if curves:
        axes.legend()
    return figure


Point = tuple[float, float, float, float]
"""Step, mean, and the lower and upper end of the interval; NaN or None if there is none."""


def _means(findings: Findings, experiment: str) -> list[Point]:
    """The mean of an experiment at each step at which all of its compared runs were measured."""
    values = findings.values[(findings.values["experiment"] == experiment) & (findings.values["state"] == "reached")]
    column = findings.measure.column
    rows = findings.metrics[findings.metrics["run"].isin(values["run"])].dropna(subset=column)
    groups = {step: rows.loc[rows["step"] == step, column] for step in sorted(rows["step"].unique())}
    means = [(step, stats.estimate(losses)) for step, losses in groups.items() if len(losses) == len(values)]
    return [(float(step), mean.mean, mean.low, mean.high) for step, mean in means if math.isfinite(mean.mean)]


def _add_curve(axes: Axes, label: str, number: int, points: list[Point]) -> None:
    step, mean, low, high = np.array(points or [(math.nan,) * 4], dtype=float).T
    color, style = palette.print_color(number), palette.print_dash(number)
    axes.plot(step, mean, color=color, linestyle=style, label=printable(label), marker="o" if len(step) == 1 else None)
    axes.fill_between(step, low, high, color=color, alpha=0.15, linewidth=0)


def _figure(x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    return figure, axes


def _difference_axis(findings: Findings) -> str:
    return f"difference from {printable(findings.labels[findings.reference])}, {findings.measure.unit}"


def _number(findings: Findings, experiment: object) -> int:
    """The number of an experiment's color and line style, which is the same in every figure."""
    return findings.summary["experiment"].tolist().index(experiment)


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()
