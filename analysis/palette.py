"""Colors and line styles of the series in every figure, legible on light and dark backgrounds."""

COLORS = ("#2f7fc1", "#e08214", "#1b9e77", "#d6478f", "#7d6bd0", "#b8860b", "#56a9d6", "#d1495b")
DASHES = ("solid", "dash", "dot", "dashdot")


def color(number: int) -> str:
    """The color of series `number`, counted from 0."""
    return COLORS[number % len(COLORS)]


def dash(number: int) -> str:
    """The line style of series `number`. Series with the same color have different line styles."""
    return DASHES[number // len(COLORS) % len(DASHES)]


PRINT_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colors, which the color-blind can tell apart, without yellow, which is too light on paper."""
PRINT_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
"""Line styles of matplotlib, one per color, so that lines can be told apart without color."""


def print_color(number: int) -> str:
    """The color of series `number` in print, counted from 0."""
    return PRINT_COLORS[number % len(PRINT_COLORS)]


def print_dash(number: int) -> str | tuple[int, tuple[int, ...]]:
    """The line style of series `number` in print."""
    return PRINT_DASHES[number % len(PRINT_DASHES)]
