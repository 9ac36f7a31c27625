"""Errors of calls whose argument is none of the known ones: one line that names the choices."""

from collections.abc import Iterable

from pandas import DataFrame
from pandas.api.types import is_numeric_dtype

from gptlab.errors import BadInputError
from gptlab.validation import did_you_mean

MAX_CHOICES = 40
"""Maximum number of choices in an error message."""


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Check that an argument is one of its choices.

    Args:
        argument: Its name.
        value: Its value.
        choices: What it can be.

    Raises:
        BadInputError: It is none of them.
    """
    known = list(choices)
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise BadInputError(f"{argument} is '{value}', which is none of: {listed(known)}{hint}")


def check_column(argument: str, value: object, table: DataFrame) -> None:
    """Check that an argument is a column of numbers in a table.

    Args:
        argument: Its name.
        value: Its value.
        table: The table.

    Raises:
        BadInputError: There is no such column; the choices are those that hold numbers.
    """
    if value not in table or not is_numeric_dtype(table[str(value)]):
        check_choice(argument, value, table.select_dtypes("number").columns)


def listed(choices: list[str]) -> str:
    """The choices, joined by commas; of many, the first ones."""
    more = f" and {len(choices) - MAX_CHOICES} more" if len(choices) > MAX_CHOICES else ""
    return (", ".join(choices[:MAX_CHOICES]) or "nothing, because there is none") + more
