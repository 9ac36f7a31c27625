"""Validation errors as one line of text."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing pydantic takes longer than the command line without it
    from pydantic import ValidationError

MAX_TAG_LENGTH = 64  # W&B's limit
MAX_ERRORS = 5
CLOSE = 0.75
"""Similarity of a typing error: two letters of seven swapped, or one of four missing. With `difflib`'s 0.6 there are
suggestions that have nothing to do with the word."""
MAX_LISTED = 30
MAX_LENGTH = 100
"""Characters of a key or value that a message quotes: an untrusted file can hold keys and values of any length."""


def explain(error: "ValidationError", known_keys: Iterable[str] = ()) -> str:
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
            message = f"there is no such field{suggest(where, [key for key in known_keys if key != where])}"
        elif detail["type"] == "missing":
            message = "is required"
        elif detail["type"] not in {"value_error", "json_invalid"}:
            message = f"{message[0].lower()}{message[1:]}, not {_quoted(detail['input'])}"
        parts.append(f"{where:.{MAX_LENGTH}}: {message}" if where else message)
    if len(details) > MAX_ERRORS:
        parts.append(f"and {len(details) - MAX_ERRORS} more")
    return "; ".join(parts)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string if none is really close.

    Of dotted keys only the last parts are compared: `train.step` is close to `train.steps`, and so is `step`. A key
    with a section that exists is close to keys of this section only, and to the same name in another section.
    """
    section, _, last = word[:MAX_LENGTH].rpartition(".")
    anywhere: dict[str, str] = {}
    in_section: dict[str, str] = {}
    for key in known:
        key_section, _, key_last = key.rpartition(".")
        anywhere.setdefault(key_last, key)
        if key_section == section:
            in_section[key_last] = key
    for keys, cutoff in ((in_section, CLOSE), (anywhere, 1.0 if section and in_section else CLOSE)):
        if nearest := difflib.get_close_matches(last, keys, n=1, cutoff=cutoff):
            return f"; did you mean '{keys[nearest[0]]}'?"
    return ""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `did_you_mean`; if nothing is close, say what exists instead: of dotted keys the section, or the sections.

    The answer begins with "; " and is bounded, however many words are known.
    """
    keys = list(known)
    section = word[:MAX_LENGTH].rpartition(".")[0]
    sections = list(dict.fromkeys(key.rpartition(".")[0] for key in keys if "." in key))
    if hint := did_you_mean(word, keys):
        return hint
    if section in sections:
        return f"; {section} has {listed(key.rpartition('.')[2] for key in keys if key.rpartition('.')[0] == section)}"
    if sections:
        return f"; the sections are {listed(sections)}; `gptlab show NAME` lists the fields"
    return f"; available: {listed(keys)}" if keys else ""


def listed(words: Iterable[str]) -> str:
    """Return the first words on one line, and how many more there are."""
    every = list(words)
    more = [f"and {len(every) - MAX_LISTED} more"] if len(every) > MAX_LISTED else []
    return ", ".join([f"{word:.{MAX_LENGTH}}" for word in every[:MAX_LISTED]] + more)


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
