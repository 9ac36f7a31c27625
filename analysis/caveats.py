"""Caveats of a comparison of runs, as sentences: what is wrong, and what to do about it."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator

from pandas import DataFrame

from analysis import attempts, columns, compare
from gptlab.identity import UNKNOWN

OPTIMISTIC = (
    "Best values are optimistic: the best step and the best run were selected by the same losses that are reported. On "
    "other text, losses will be slightly higher. Decide by the comparison at equal steps, or measure other text with "
    "`gptlab eval RUN --text FILE`."
)

MAX_CPU_RATIO = 1.25
"""Runs whose CPU seconds per second of training differ by a larger factor did not have the same share of a machine."""

MAX_LISTED = 6
"""Maximum number of runs or versions in one sentence."""


SETTINGS = {
    "numerics": ("numerics revisions", "Repeat the older ones with `gptlab run`, which starts new runs."),
    "precision": ("precisions", "`--set train.precision=float32` gives all of them the same one."),
}
"""What differs between runs by column of `load.runs()`, and what to do about it."""

ENVIRONMENT = {
    "device": ("devices", "Train all of them with the same `--device`."),
    "torch": ("versions of PyTorch", "Train all of them in one environment."),
    "threads": ("thread counts", "Train all of them with the same OMP_NUM_THREADS."),
    "compile": ("choices of --compile", "Train all of them with `--no-compile`, or all without it."),
}
"""The same for facts about attempts."""


def find_caveats(runs: DataFrame) -> list[str]:
    """Return the reasons why these runs are not directly comparable, the most serious first.

    Args:
        runs: Rows of `load.runs()`.

    Returns:
        One text per caveat, which ends with what to do; empty if there is none.
    """
    return [caveat for caveat in _candidates(runs) if caveat]


def seconds_caveat(runs: DataFrame) -> str | None:
    """Why values at equal seconds of training are not like with like; None if no reason is known.

    Args:
        runs: Rows of `load.runs()`.
    """
    timed = runs[runs["elapsed_s"].gt(0)]
    reasons = [
        f"{number} different {what}"
        for fact, what in {"host": "hosts", "device": "devices", "threads": "thread counts"}.items()
        if (number := len(_counts(timed, fact))) > 1
    ]
    shares = (timed["cpu_s"] / timed["elapsed_s"]).set_axis(timed["run"])
    shares = shares[shares.gt(0) & shares.lt(math.inf)]
    if len(shares) and shares.max() > MAX_CPU_RATIO * shares.min():
        reasons.append(
            f"CPU seconds per second of training from {shares.min():.2f} ({shares.idxmin()}) to {shares.max():.2f} "
            f"({shares.idxmax()}), more than a factor of {MAX_CPU_RATIO:g} apart, as on a busy machine"
        )
    if not reasons:
        return None
    return (
        "Seconds of training are not like with like, so values at equal seconds say more about the machines than "
        f"about the experiments: these runs have {'; '.join(reasons)}. Compare at equal steps, or train one after the "
        "other on one idle machine."
    )


def _candidates(runs: DataFrame) -> Iterator[str | None]:
    yield _damaged(runs)
    yield _several_tokenizers(runs)
    yield _then(compare.yardstick_caveat(runs), "`gptlab eval RUN --text FILE` measures each of them on the same text.")
    yield _then(
        _different(runs, "text.sha256", "text.source", "Different texts: these runs were trained on {n} texts"),
        "Compare experiments on one text with `gptlab report --name NAME`, or train all of them on it with "
        "`gptlab run NAME --text FILE`.",
    )
    yield _then(
        _with_status(
            runs, ["diverged"], "{n} of {all} runs diverged; they count as an infinite loss and stay in every table"
        ),
        "A smaller `train.learning_rate` or `train.grad_clip` may prevent it, in a new experiment.",
    )
    yield _then(
        _with_status(
            runs,
            ["interrupted", "failed", "running"],
            "{n} of {all} runs are unfinished and excluded from means at steps that they did not reach",
        ),
        "Those that are no longer running finish with `gptlab resume RUN`.",
    )
    yield from _shared_trunks(runs)
    yield _profiled(runs)
    yield _different_arithmetic(runs)
    yield _changed_between_attempts(runs)
    yield _mixed_code(runs)
    for column, (what, remedy) in SETTINGS.items():
        yield _then(_different(runs, column, column, "These runs were made with {n} different " + what), remedy)
    for fact, (what, remedy) in ENVIRONMENT.items():
        counts = _counts(runs, fact)
        if len(counts) > 1:
            parts = [f"{value} ({count})" for value, count in counts.items()]
            yield f"These runs were made with {len(counts)} different {what}: {', '.join(parts)}. {remedy}"


def _then(caveat: str | None, remedy: str) -> str | None:
    return caveat and f"{caveat} {remedy}"


def _different(runs: DataFrame, column: str, label: str, sentence: str) -> str | None:
    """A caveat that lists the labels of a column's values, with their numbers of runs; None if there is one value."""
    known = runs.dropna(subset=column)
    if known[column].nunique() < 2:
        return None
    counts = known.groupby([column, label] if label != column else [column], sort=False).size()
    parts = [f"{key[-1] if isinstance(key, tuple) else key} ({count})" for key, count in counts.items()]
    return f"{sentence.format(n=known[column].nunique())}: {', '.join(parts)}."


def _damaged(runs: DataFrame) -> str | None:
    damaged = runs.loc[runs["damage"].notna(), "run"].tolist()
    if not damaged:
        return None
    return (
        f"The metrics of {len(damaged)} of {len(runs)} runs have changed since they were written, so none of their "
        f"numbers is used: {abbreviate(damaged)}. Restore them from a backup, or move them to the trash with "
        "`gptlab rm RUN` and run them again."
    )


def _several_tokenizers(runs: DataFrame) -> str | None:
    found = _different(runs, "tokenizer.sha256", "data.tokenizer", "These runs have {n} different tokenizers")
    if found is None:
        return None
    return (
        f"{found} Losses per token do not compare across tokenizers, so the runs are ranked and compared by bits per "
        "byte. During training these are measured on different windows of the validation text; `gptlab eval` measures "
        "them on all of it. After the same number of steps, the runs have read different amounts of text."
    )


def _with_status(runs: DataFrame, statuses: list[str], sentence: str) -> str | None:
    selected = runs[runs["status"].isin(statuses)]
    if selected.empty:
        return None
    return f"{sentence.format(n=len(selected), all=len(runs))}: {abbreviate(selected['run'].tolist())}."


def _shared_trunks(runs: DataFrame) -> Iterator[str]:
    """Caveats about runs that are not independent, because they start from the same run or from one of these runs."""
    known = set(runs["run"])
    for parent, group in runs.dropna(subset="parent").groupby("parent", sort=False):
        if len(group) + (parent in known) < 2:
            continue
        yield (
            f"Shared training: {len(group)} of these runs started from {parent} and share its training up to there, so "
            f"they are not independent replicates of each other or of it: {abbreviate(group['run'].tolist())}. "
            "Independent replicates start from scratch, with other seeds."
        )


def _profiled(runs: DataFrame) -> str | None:
    selected = runs.loc[runs["profiled"].fillna(False).astype(bool), "run"].tolist()
    if not selected:
        return None
    return (
        f"{len(selected)} of {len(runs)} runs were made with --profile; they are listed, but are never replicates: "
        f"{abbreviate(selected)}. Repeat their command with --fresh and without --profile to use them."
    )


def _changed_between_attempts(runs: DataFrame) -> str | None:
    mixed = attempts.mixed(runs)
    listed = [f"{run} ({what})" for run, what in zip(runs["run"], mixed, strict=True) if what]
    if not listed:
        return None
    return (
        f"{len(listed)} of {len(runs)} runs consist of attempts that differ in code or environment, so they are not "
        f"exact replicates: {abbreviate(listed)}. Repeat their command with --fresh for exact ones."
    )


def _different_arithmetic(runs: DataFrame) -> str | None:
    """A caveat on experiments of one spec whose code computes different numbers."""
    known = runs.dropna(subset=["fingerprint", "code_files"])
    sentences = []
    for _, group in known.groupby([*columns.IDENTITY, "name"], dropna=False, sort=False):
        versions = group.drop_duplicates("fingerprint")
        if len(versions) > 1:
            listed = ", ".join(f"{row.experiment}" for row in versions.itertuples())
            sentences.append(f"{listed}: {', '.join(_differing_files(versions['code_files'])) or 'no file differs'}")
    if not sentences:
        return None
    return (
        f"Different arithmetic: the same spec was trained by code that computes other numbers ({'; '.join(sentences)})."
        " `gptlab diff RUN OTHER --patch` shows the difference."
    )


def _differing_files(code_files: Iterable[str]) -> list[str]:
    """The files of code that have several versions, or unknown ones, among the runs that use them."""
    versions: dict[str, set[str]] = {}
    for files in map(json.loads, code_files):
        for name, sha256 in files.items():
            versions.setdefault(name, set()).add(sha256)
    return sorted(name for name, found in versions.items() if len(found) > 1 or UNKNOWN in found)


def _mixed_code(runs: DataFrame) -> str | None:
    counts = _counts(runs, attempts.CODE)
    known = runs["code_files"].notna().all() and runs["changed"].isna().all()
    if len(counts) < 2 or (known and not _differing_files(runs["code_files"])):
        return None  # the commits differ in other files than those that determine the numbers
    listed = abbreviate([f"{code} ({count})" for code, count in counts.items()])
    return (
        f"Mixed code: these runs were made by {len(counts)} different versions of the code: {listed}. "
        "`gptlab diff RUN OTHER --patch` shows whether that matters."
    )


def _counts(runs: DataFrame, fact: str) -> Counter[str]:
    """The number of runs by the values of a fact over all attempts; a run counts once for each of its values."""
    values = attempts.values(runs, fact)
    return Counter(str(value) for successive in values for value in dict.fromkeys(successive) if value is not None)


def abbreviate(items: list[str]) -> str:
    """Join the first items with commas and count the others."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
