"""Colors and line styles of the series in every figure, legible on light and dark backgrounds."""

COLORS = ("#2f7fc1", "#e08214", "#1b9e77", "#d6478f", "#7d6bd0", "#b8860b", "#56a9d6", "#d1495b")
DASHES = ("solid", "dash", "dot", "dashdot")


def color(number: int) -> str:
    """The color of series `number`, counted from 0."""
    return COLORS[number % len(COLORS)]


def dash(number: int) -> str:
    """The line style of series `number`. Series with the same color have different line styles."""
    return DASHES[number // len(COLORS) % len(DASHES)]
