"""Validation errors as one line of text."""

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

MAX_ERRORS = 5
MAX_LENGTH = 100
"""Characters of a key or value that a message quotes: an untrusted file can hold keys and values of any length."""


def explain(error: ValidationError, known_keys: Iterable[str] = ()) -> str:
    """Describe a pydantic error in one line: the first invalid fields, what is wrong, and the value given.

    Args:
        error: The error.
        known_keys: Valid dotted keys, to suggest one for an unknown key.
    """
    parts = []
    details = error.errors(include_url=False)
    for detail in details[:MAX_ERRORS]:
        where = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"there is no such field{did_you_mean(where, [key for key in known_keys if key != where])}"
        elif detail["type"] == "missing":
            message = "is required"
        elif detail["type"] not in {"value_error", "json_invalid"}:
            message = f"{message[0].lower()}{message[1:]}, not {_quoted(detail['input'])}"
        parts.append(f"{where:.{MAX_LENGTH}}: {message}" if where else message)
    if len(details) > MAX_ERRORS:
        parts.append(f"and {len(details) - MAX_ERRORS} more")
    return "; ".join(parts)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string.

    Of dotted keys only the last parts are compared: `train.step` is close to `train.steps`, and so is `step`.
    """
    section, _, last = word[:MAX_LENGTH].rpartition(".")
    anywhere: dict[str, str] = {}
    in_section: dict[str, str] = {}
    for key in known:
        key_section, _, key_last = key.rpartition(".")
        anywhere.setdefault(key_last, key)
        if key_section == section:
            in_section[key_last] = key
    for keys in (in_section, anywhere):
        if nearest := difflib.get_close_matches(last, keys, n=1):
            return f"; did you mean '{keys[nearest[0]]}'?"
    return ""


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
