"""The questions that the experiments ask, each with its answers and with samples side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pandas import DataFrame

from analysis.findings import Findings, Sample
from analysis.verdicts import verdicts

MAX_QUESTIONS = 12
"""Maximum number of questions in a report: those of the best experiments."""

MAX_ANSWERS = 8
"""Maximum number of answers to a question: those of the best experiments that ask it."""

MAX_SIDE_BY_SIDE = 4
"""Maximum number of samples side by side, the reference's among them."""


class Question(NamedTuple):
    """A question, and the experiments that ask it."""

    text: str
    experiments: list[str]
    """The experiments, best first."""
    answers: list[tuple[str, str]]
    """The best of these experiments, each with the sentence that answers the question."""
    samples: list[tuple[str, Sample]]
    """Experiments with a sample each: the reference and the best ones."""


def questions(findings: Findings) -> list[Question]:
    """Return the questions of the best experiments; experiments with the same question are together."""
    answers = verdicts(findings)
    asking: dict[str, list[str]] = {}
    for experiment in findings.summary["experiment"].tolist():
        asking.setdefault(findings.questions[experiment], []).append(experiment)
    return [
        Question(
            text,
            members,
            [(experiment, answers[experiment]) for experiment in members[:MAX_ANSWERS]],
            side_by_side(findings, list(dict.fromkeys([findings.reference, *members]))[:MAX_SIDE_BY_SIDE]),
        )
        for text, members in list(asking.items())[:MAX_QUESTIONS]
    ]


def side_by_side(findings: Findings, experiments: Sequence[str]) -> list[tuple[str, Sample]]:
    """Return a sample of each experiment that has one, of the same prompt, step and seed where possible.

    The prompt is the one that most of these experiments have. Among its samples, the step is the last one that most
    experiments have, and the seed is chosen in the same way. An experiment without such a sample shows its nearest one;
    the prompt counts most, the seed least.
    """
    runs = findings.runs.loc[findings.runs["experiment"].isin(experiments), ["run", "experiment"]]
    rows = findings.samples.merge(runs, on="run").drop_duplicates(["run", "prompt", "step"], keep="last")
    if rows.empty:
        return []
    alike = rows
    for column in ("prompt", "step", "seed"):
        shared = _most_shared(alike, column)
        rows[f"same {column}"] = rows[column] == shared
        alike = alike[alike[column] == shared]
    keys = ["same prompt", "same step", "same seed", "step"]
    nearest = rows.sort_values(keys, kind="stable").drop_duplicates("experiment", keep="last")
    samples = {
        row["experiment"]: Sample(
            findings.labels[row["experiment"]], f"seed {row['seed']}, step {row['step']}", row["prompt"], row["text"]
        )
        for row in nearest.to_dict("records")
    }
    return [(experiment, samples[experiment]) for experiment in experiments if experiment in samples]


def _most_shared(rows: DataFrame, column: str) -> Any:
    """The value of a column that most experiments have; the largest one if there are several."""
    counts = rows.groupby(column)["experiment"].nunique()
    return counts[counts == counts.max()].index.max()
