"""A run as lines of text: its state, its loss curve and its newest sample."""

import math
import re
import textwrap
from collections.abc import Sequence

from rich.text import Text

from gptlab.commands.run_progress import format_loss, status_text
from gptlab.commands.watched_metrics import Points
from gptlab.commands.watched_run import WatchedRun
from gptlab.terminal.chart import Curve, chart
from gptlab.terminal.text import format_duration, printable

TRAIN, VAL = "cyan", "yellow"
LINE, POINT = "⠒", "●"
"""The colors and the marks of the two losses."""
SEPARATOR = " · "
MIN_BAR, MAX_BAR = 8, 50
AXIS_LINES = 2
CHART_LINES = 10
"""Lines of a curve where nothing limits them; the axis takes more."""
MIN_CHART, MAX_CHART = 3, 30
ROOMY = 10
"""Lines of a curve from which there are empty lines above and below it."""
LONG_CURVE, START = 40, 0.05
"""Of so many points, those in this share of the steps are not drawn if they are higher than all later ones."""
SAMPLE_LINES = 4


def block(run: WatchedRun, now: float, width: int, height: int | None = None) -> list[Text]:
    """Return a run as lines.

    Args:
        run: The run.
        now: Unix time.
        width: Columns.
        height: How many lines there may be; None if nothing limits them.
    """
    head = [*title(run, now, width), *_progress(run, now, width), *_losses(run, width)]
    if run.problem:
        head += [Text(line, "red") for line in textwrap.wrap(printable(run.problem), width)]
    sample = _sample(run, width)
    if height is None:
        return crop([*head, *curves(run, width, CHART_LINES), *sample], width)
    left = height - len(head) - AXIS_LINES
    sample = sample[: max(left - MIN_CHART, 0)]
    chart_lines = min(left - len(sample), MAX_CHART)
    if chart_lines >= ROOMY:
        chart_lines, head, sample = chart_lines - 2, [*head, Text()], [Text(), *sample]
    return crop([*head, *curves(run, width, chart_lines), *sample], width)[:height]


def title(run: WatchedRun, now: float, width: int) -> list[Text]:
    """Return the run's id and status, and what else there is to know."""
    first = Text.assemble((run.name, "bold"), "  ", status_text(run.status))
    note = Text(printable(run.note(now) or ""), "yellow" if run.is_silent(now) else "dim")
    if not note:
        return [first]
    if first.cell_len + 2 + note.cell_len <= width:
        return [Text.assemble(first, "  ", note)]
    if run.is_open and not run.is_silent(now):
        return [first]
    return [first, *(Text(line, note.style) for line in textwrap.wrap(note.plain, width))]


def curves(run: WatchedRun, width: int, height: int) -> list[Text]:
    """Return the loss curve in `height` lines and its axis; nothing if there is no space or there are no points."""
    if height < MIN_CHART:
        return []
    limit = _highest_after_start(run)
    lines = chart([_curve("", run.train, limit), _curve(POINT, run.val, limit)], width, height)
    return [_colored(line) for line in lines]


def with_error(run: WatchedRun) -> str:
    """Return the validation loss and its standard error."""
    error = "" if run.val_loss_se is None else f" ± {run.val_loss_se:.4f}"
    return f"{format_loss(run.val_loss)}{error}"


def crop(lines: Sequence[Text], width: int) -> list[Text]:
    """Return lines of at most `width` columns."""
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return list(lines)


def _progress(run: WatchedRun, now: float, width: int) -> list[Text]:
    share = min(run.step / run.steps, 1.0) if run.steps else 1.0
    eta_s = run.eta_s(now)
    eta = f"{SEPARATOR}ETA {format_duration(eta_s)}" if eta_s is not None else f"{SEPARATOR}ETA …" * run.is_open
    start, end = f"step {run.step:,} of {run.steps:,}", f"{share:.0%}{eta}"
    space = min(width - len(start) - len(end) - 2, MAX_BAR)
    if space < MIN_BAR:
        return _flow([Text(start), Text(end.removeprefix(SEPARATOR))], width)
    done = round(share * space)
    bar = Text.assemble(("━" * done, status_text(run.status).style), ("─" * (space - done), "dim"))
    return [Text.assemble(start, " ", bar, " ", end)]


def _losses(run: WatchedRun, width: int) -> list[Text]:
    train, val, speed = [], [], []
    if run.loss is not None:
        train.append(Text.assemble((LINE, TRAIN), f" train loss {format_loss(run.loss)}"))
    if run.val:
        val.append(Text.assemble((POINT, VAL), f" val loss {with_error(run)} at step {run.val[-1][0]:,}"))
    if run.tokens_per_s is not None:
        speed.append(Text(f"{run.tokens_per_s:,.0f} tokens/s"))
    return min(_flow([*train, *val, *speed], width), _flow([*train, *speed, *val], width), key=len)


def _flow(parts: Sequence[Text], width: int) -> list[Text]:
    """Parts on as few lines as possible."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(SEPARATOR) + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], SEPARATOR, part)
        else:
            lines.append(part)
    return lines


def _sample(run: WatchedRun, width: int) -> list[Text]:
    """The newest sample under a heading. A run generates one when it is complete."""
    if run.sample is None:
        return []
    wrapped = [
        row
        for line in printable(run.sample["prompt"] + run.sample["text"]).expandtabs().splitlines()
        for row in textwrap.wrap(line, width)
    ]
    if len(wrapped) > SAMPLE_LINES:
        wrapped[SAMPLE_LINES - 1 :] = [f"{wrapped[SAMPLE_LINES - 1][: width - 2]} …"]
    return [Text(f"sample at step {run.sample['step']:,}", "dim"), *map(Text, wrapped)]


def _highest_after_start(run: WatchedRun) -> float:
    """The highest loss after the steep start, which would leave few lines for the rest; no limit for a short curve."""
    if len(run.train) < LONG_CURVE:
        return math.inf
    first, last = run.train[0][0], run.train[-1][0]
    after = first + START * (last - first)
    return max(loss for step, loss in [*run.train, *run.val] if step >= after)


def _curve(mark: str, points: Points, limit: float) -> Curve:
    drawn = [(step, loss) for step, loss in points if loss <= limit]
    return Curve(mark, [step for step, _ in drawn], [loss for _, loss in drawn])


def _colored(line: str) -> Text:
    text = Text(line)
    text.highlight_regex(re.compile("[\u2800-\u28ff]+"), TRAIN)
    text.highlight_regex(re.compile(POINT), VAL)
    text.highlight_regex(re.compile("[┤└─]+"), "dim")
    return text
