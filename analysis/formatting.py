"""Numbers and settings as text, for the tables and sentences of a report."""

import math
from typing import Any

from pandas import isna

MISSING = "–"


def loss(value: float) -> str:
    """A loss with four decimals, or `diverged` if it is infinite."""
    return MISSING if isna(value) else f"{value:.4f}" if math.isfinite(value) else "diverged"


def standard_error(value: float) -> str:
    """The suffix ` ± 0.0123` of a loss; empty without a finite standard error."""
    return f" ± {value:.4f}" if not isna(value) and math.isfinite(value) else ""


def interval(low: float, high: float, sign: str = "") -> str:
    """An interval; with `sign="+"`, positive ends have a sign."""
    return MISSING if isna(low) or isna(high) else f"{low:{sign}.4f} to {high:{sign}.4f}"


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return MISSING if isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_statement(p: float) -> str:
    """A p-value in a sentence: `p = 0.240` or `p < 0.001`."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def signed(value: float) -> str:
    """A difference with its sign and four decimals, with a true minus sign."""
    return f"{value:+.4f}".replace("-", "−")


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return MISSING if isna(value) else f"{value:,.0f}" if math.isfinite(value) else "∞"


def setting(value: Any) -> str:
    """The value of a setting. A SHA-256 is shortened to eight digits."""
    text = MISSING if value is None or isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text
