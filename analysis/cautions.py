"""What a reader should know before believing a comparison, in words."""

from collections.abc import Iterator

from pandas import DataFrame

from analysis import compare


def cautions(runs: DataFrame) -> list[str]:
    """What keeps these runs from being like with like, the gravest first; nothing for a single clean run."""
    return [caution for caution in _all(runs) if caution]


OPTIMISTIC = (
    "A best value was chosen by the numbers that it is taken from, be it the best step of a run or the best of many "
    "runs: it is optimistic, and on other text the choice will do a little worse."
)


def _all(runs: DataFrame) -> Iterator[str | None]:
    yield compare.caution(runs)
    yield _differ(runs, "text.sha256", "text.source", "Other text: these runs were trained on {n} different texts")
    yield _counted(
        runs, ["diverged"], "{n} of {all} runs diverged. They count as an infinite loss and stay in every table"
    )
    yield _counted(
        runs,
        ["interrupted", "failed", "running"],
        "{n} of {all} runs are unfinished. Where others went further, they are not in a mean",
    )
    yield _mixed_code(runs)
    for column, what in {
        "numerics": "revisions of the arithmetic",
        "precision": "precisions",
        "device": "kinds of device",
        "torch": "versions of PyTorch",
        "threads": "numbers of threads",
    }.items():
        yield _differ(runs, column, column, "These runs were made with {n} different " + what)


def _differ(runs: DataFrame, column: str, shown: str, words: str) -> str | None:
    known = runs.dropna(subset=column)
    if known[column].nunique() < 2:
        return None
    counts = known.groupby([column, shown] if shown != column else [column], sort=False).size()
    parts = [f"{key[-1] if isinstance(key, tuple) else key} ({count})" for key, count in counts.items()]
    return f"{words.format(n=known[column].nunique())}: {', '.join(parts)}."


def _counted(runs: DataFrame, statuses: list[str], words: str) -> str | None:
    found = runs[runs["status"].isin(statuses)]
    return f"{words.format(n=len(found), all=len(runs))}: {_listed(found)}." if len(found) else None


def _mixed_code(runs: DataFrame) -> str | None:
    code = runs["git_commit"].str[:8].fillna("unknown") + runs["diff_sha256"].str[:8].radd(" with changes ").fillna("")
    if code.nunique() < 2:
        return None
    counts = code.value_counts(sort=False)
    listed = ", ".join(f"{commit} ({count})" for commit, count in list(counts.items())[:6])
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return f"Mixed code: these runs were made by {len(counts)} different states of the project: {listed}{more}."


def _listed(runs: DataFrame, most: int = 6) -> str:
    shown = ", ".join(runs["run"].head(most))
    return f"{shown} and {len(runs) - most} more" if len(runs) > most else shown
