"""Caveats of a comparison of runs, as sentences."""

from collections.abc import Iterator

from pandas import DataFrame

from analysis import compare

OPTIMISTIC = (
    "Best values are optimistic: the best step and the best run were selected by the same losses that are reported. On "
    "other text, losses will be slightly higher."
)

MAX_LISTED = 6
"""Maximum number of runs or versions in one sentence."""


def find_caveats(runs: DataFrame) -> list[str]:
    """Return the reasons why these runs are not directly comparable, the most serious first.

    Args:
        runs: Rows of `load.runs()`.

    Returns:
        One sentence per caveat; empty if there is none.
    """
    return [caveat for caveat in _candidates(runs) if caveat]


def _candidates(runs: DataFrame) -> Iterator[str | None]:
    yield compare.yardstick_caveat(runs)
    yield _different(runs, "text.sha256", "text.source", "Different texts: these runs were trained on {n} texts")
    yield _with_status(
        runs, ["diverged"], "{n} of {all} runs diverged; they count as an infinite loss and stay in every table"
    )
    yield _with_status(
        runs,
        ["interrupted", "failed", "running"],
        "{n} of {all} runs are unfinished and excluded from means at steps that they did not reach",
    )
    yield _mixed_code(runs)
    for column, what in {
        "numerics": "numerics revisions",
        "precision": "precisions",
        "device": "devices",
        "torch": "versions of PyTorch",
        "threads": "thread counts",
    }.items():
        yield _different(runs, column, column, "These runs were made with {n} different " + what)


def _different(runs: DataFrame, column: str, label: str, sentence: str) -> str | None:
    """A caveat that lists the labels of a column's values, with their numbers of runs; None if there is one value."""
    known = runs.dropna(subset=column)
    if known[column].nunique() < 2:
        return None
    counts = known.groupby([column, label] if label != column else [column], sort=False).size()
    parts = [f"{key[-1] if isinstance(key, tuple) else key} ({count})" for key, count in counts.items()]
    return f"{sentence.format(n=known[column].nunique())}: {', '.join(parts)}."


def _with_status(runs: DataFrame, statuses: list[str], sentence: str) -> str | None:
    selected = runs[runs["status"].isin(statuses)]
    if selected.empty:
        return None
    return f"{sentence.format(n=len(selected), all=len(runs))}: {abbreviate(selected['run'].tolist())}."


def _mixed_code(runs: DataFrame) -> str | None:
    code = runs["git_commit"].str[:8].fillna("unknown") + runs["diff_sha256"].str[:8].radd(" with changes ").fillna("")
    if code.nunique() < 2:
        return None
    counts = code.value_counts(sort=False)
    listed = abbreviate([f"{commit} ({count})" for commit, count in counts.items()])
    return f"Mixed code: these runs were made by {len(counts)} different versions of the code: {listed}."


def abbreviate(items: list[str]) -> str:
    """Join the first items with commas and count the others."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
