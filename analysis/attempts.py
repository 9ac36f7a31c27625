"""Facts about a run that changed between its attempts, such as its code or its machine."""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from pandas import DataFrame, Series, isna

from analysis import columns

CODE = "code"
"""Key of the versions of the code in the column `changed`: commit and uncommitted changes as one text."""

SOURCE = ("git_commit", "diff_sha256", "git_dirty")
"""Facts that make up a version of the code. With a commit, an unknown `git_dirty` means that the diff is unknown."""

ARITHMETIC = "fingerprint"
"""What the code computes. If it is known and the same in all attempts, changes of the code do not matter."""

NAMES = {ARITHMETIC: "arithmetic"}
HASH_LENGTH = 64

DECISIVE = (ARITHMETIC, CODE, "device", "torch", "threads", "compile")
"""Facts that can change a run's numbers."""


def changes(starts: Iterable[Mapping[str, Any]]) -> str | None:
    """The column `changed` of `load.runs()` from the rows that record the start of an attempt."""
    attempts = [{**start, CODE: code(*(start.get(key) for key in SOURCE))} for start in starts]
    facts = (CODE, *(column for column in columns.START if column != "notes"))
    successive = {fact: [value for value, _ in groupby(start.get(fact) for start in attempts)] for fact in facts}
    changed = {fact: values for fact, values in successive.items() if len(values) > 1}
    return json.dumps(changed) if changed else None


def code(commit: Any, diff_sha256: Any, dirty: Any) -> str:
    """A version of the code, such as `c0ffee00` or `c0ffee00 with changes 12345678`; `unknown` without a commit."""
    if commit is None or isna(commit):
        return "unknown"
    if diff_sha256 is not None and not isna(diff_sha256):
        return f"{str(commit)[:8]} with changes {diff_sha256[:8]}"
    return f"{str(commit)[:8]} with unknown changes" if dirty is None or isna(dirty) else str(commit)[:8]


def values(runs: DataFrame, fact: str) -> Series:
    """The successive values of a fact over each run's attempts, as lists in the order of `runs`.

    Args:
        runs: Rows of `load.runs()`.
        fact: One of its columns, or `code`.
    """
    newest: list[Any]
    if fact == CODE:
        newest = [code(*source) for source in zip(*(runs[key] for key in SOURCE), strict=True)]
    else:
        newest = [None if isna(value) else value for value in runs[fact]]
    lists = [_changed(text).get(fact, [value]) for text, value in zip(runs["changed"], newest, strict=True)]
    return Series(lists, index=runs.index, dtype=object)


def mixed(runs: DataFrame) -> Series:
    """What can change the numbers and changed between a run's attempts, in words; empty if nothing did.

    Returns:
        Texts such as `threads: 2, then 1`, in the order of `runs`.
    """

    def describe(text: Any, fingerprint: Any) -> str:
        changed = _changed(text)
        same = not isna(fingerprint) and ARITHMETIC not in changed
        facts = [fact for fact in DECISIVE if fact in changed and not (fact == CODE and same)]
        return "; ".join(f"{NAMES.get(fact, fact)}: {then(map(_short, changed[fact]))}" for fact in facts)

    described = [describe(*row) for row in zip(runs["changed"], runs[ARITHMETIC], strict=True)]
    return Series(described, index=runs.index, dtype="str")


def then(successive: Iterable[Any], missing: str = "unknown") -> str:
    """Successive values as text: `2, then 1`."""
    return ", then ".join(missing if value is None else str(value) for value in successive)


def _short(value: Any) -> Any:
    """A hash in 8 digits, other values as they are."""
    return value[:8] if isinstance(value, str) and len(value) == HASH_LENGTH else value


def _changed(text: Any) -> dict[str, list[Any]]:
    return {} if text is None or isna(text) else json.loads(text)
