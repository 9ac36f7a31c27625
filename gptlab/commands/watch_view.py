"""How `gptlab watch` fills a terminal: one run with its curve and sample, or a table of several with their curves."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gptlab.commands.run_progress import progress_columns, status_text, those_that_fit
from gptlab.commands.run_settings import short_names, varied_settings
from gptlab.commands.watch_block import AXIS_LINES, CHART_LINES, MAX_CHART, SEPARATOR, block, crop, curves, with_error
from gptlab.commands.watched_run import WatchedRun
from gptlab.terminal.sparkline import bars, resample
from gptlab.terminal.tables import Column, fitting
from gptlab.terminal.text import format_duration, plural, printable

SPARKLINE_WIDTH = 16
MIN_CELL = 6 + AXIS_LINES
"""Lines that a curve below the table needs, with its title and an empty line."""
CELL_WIDTH = 48
"""Columns that a curve below the table needs for another one to stand beside it."""
GAP = 2
ALWAYS_VARIED = 2
"""How many of the settings that differ stay in a narrow terminal."""
HINT = "Ctrl-C ends only this view"


def screen(runs: Sequence[WatchedRun], now: float, width: int, height: int, footer: str) -> Group:
    """Return what fills a terminal.

    Args:
        runs: The runs; where there is no space for all, those in training come first.
        now: Unix time.
        width: Columns.
        height: Lines.
        footer: What the last line begins with.
    """
    last = [Text(f"{footer}{SEPARATOR}{HINT}", "dim")] * (height > 2)
    space = height - len(last)
    heading: list[Table] = []
    if not runs:
        lines = [Text("no run is running; waiting for one to start")]
    elif len(runs) == 1:
        lines = block(runs[0], now, width, space)
    else:
        shown = those_that_fit(runs, max(space - (1 if len(runs) < space else 2), 1))
        heading = [table(shown, now, width)]
        space -= len(shown) + 1
        lines = [Text(f"{plural(len(runs) - len(shown), 'run')} not shown", "dim")] * (len(shown) < len(runs))
        lines += _grid(runs, width, space - len(lines), MAX_CHART)
    lines = [*lines, *[Text()] * space][: max(space, 0)]
    return Group(*heading, *crop([*lines, *last], width))


def result(runs: Sequence[WatchedRun], now: float, width: int) -> Group:
    """Return the runs as they are printed when the view ends, in as many lines as that takes."""
    if len(runs) == 1:
        return Group(*block(runs[0], now, width))
    return Group(table(runs, now, width), *_grid(runs, width, len(runs) * MIN_CELL, CHART_LINES))


def table(runs: Sequence[WatchedRun], now: float, width: int) -> Table:
    """Return one line per run, without the columns that do not fit into the width."""
    varied = varied_settings([run.run.record for run in runs])
    columns = [
        Column("run", [run.name for run in runs]),
        *(
            Column(name, [printable(value) for value in varied[key]], rank=1 if i < ALWAYS_VARIED else 4)
            for i, (key, name) in enumerate(zip(varied, short_names(list(varied)), strict=True))
        ),
        *progress_columns(runs),
        Column("val loss", ["–" if run.val_loss is None else with_error(run) for run in runs], right=True, rank=2),
        Column("tokens/s", [_speed(run.tokens_per_s) for run in runs], right=True, rank=5),
        Column("ETA", [_duration(run.eta_s(now)) for run in runs], right=True, rank=3),
        Column("loss", [Text(_sparkline(run), "cyan") for run in runs], rank=6),
    ]
    if any(notes := [run.problem or ("" if run.is_open else run.note(now)) or "" for run in runs]):
        columns.append(Column("note", [printable(note) for note in notes], rank=7))
    return fitting(columns, width)[0]


def _grid(runs: Sequence[WatchedRun], width: int, height: int, chart_lines: int) -> list[Text]:
    """Curves beside and below each other, each under an empty line and a title; as many as the height allows.

    Args:
        runs: The runs; those without losses are left out.
        width: Columns.
        height: Lines for all.
        chart_lines: Lines of one curve at most.
    """
    drawn = [run for run in runs if run.train or run.val]
    across = max(min((width + GAP) // (CELL_WIDTH + GAP), len(drawn)), 1)
    down = min(height // MIN_CELL, -(-len(drawn) // across))
    if down < 1:
        return []
    columns, lines = (width + GAP) // across - GAP, min(height // down, chart_lines + AXIS_LINES + 2)
    cells = [_cell(run, columns, lines) for run in those_that_fit(drawn, across * down)]
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    return [_beside(parts, columns) for row in rows for parts in zip(*row, strict=True)]


def _cell(run: WatchedRun, width: int, height: int) -> list[Text]:
    lines = [Text(), Text.assemble((run.name, "bold"), "  ", status_text(run.status))]
    lines += curves(run, width, height - len(lines) - AXIS_LINES)
    return crop([*lines, *[Text()] * height][:height], width)


def _beside(parts: Sequence[Text], width: int) -> Text:
    line = Text()
    for part in parts:
        line.pad_right(-line.cell_len % (width + GAP) if line else 0)
        line.append_text(part)
    return line


def _sparkline(run: WatchedRun) -> str:
    return bars(resample([loss for _, loss in run.train], SPARKLINE_WIDTH))


def _speed(tokens_per_s: float | None) -> str:
    return "–" if tokens_per_s is None else f"{tokens_per_s:,.0f}"


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)
