"""The sentences of a report: headlines, caveats and how to read its tables."""

import math
from pathlib import Path

from pandas import DataFrame, isna

from analysis import advice, caveats, replicates
from analysis.findings import Findings, once
from analysis.measures import LOSS
from analysis.verdicts import add_seeds, clearest, mean

HOW_TO_READ = (
    "Losses are in nats per token. For a run, ± is the standard error over its validation windows: the uncertainty "
    "from the choice of validation text. For an experiment, the interval is a 95% t-interval over its seeds: the "
    "uncertainty from the seed; ± of a difference is half of that interval. Runs with the same seed share their "
    "batches, so experiments are compared in pairs."
)
COST_NOTE = (
    "≈ marks a mean with values that are interpolated between two measurements; numbers of steps to a loss are always "
    "interpolated. Seconds depend on the machine and on what else it computed; CPU time is the sum over all threads."
)
TREE_NOTE = (
    "A branch continues from its parent's weights and moments, and its steps, tokens, FLOPs and seconds include its "
    "parent's up to there."
)


@once
def headlines(findings: Findings) -> list[str]:
    """The answers: a sentence for each experiment that is compared with the reference, then which one is the best."""
    return [*clearest(findings), *_lowest(findings)]


def _lowest(findings: Findings) -> list[str]:
    best, measure = findings.summary.iloc[0].to_dict(), findings.measure
    if isna(best["mean"]):
        return []
    if math.isinf(best["mean"]):
        return [f"No lowest {measure.name}: every experiment has a seed that diverged."]
    if findings.values["yardstick"].nunique() > 1:
        on = "sets of windows" if measure is LOSS else "texts"
        return [f"No lowest {measure.name}: the experiments were validated on different {on}."]
    return [f"Lowest {measure.name}: {findings.labels[best['experiment']]}, {mean(findings, best)}"]


def comparison_note(findings: Findings) -> str:
    """How to read the comparison of experiments; empty if there is only one."""
    if len(findings.summary) < 2:
        return ""
    why = (
        ""
        if findings.against
        else ", the oldest experiment with a loss at that step; `gptlab report --against NAME` chooses another"
    )
    return (
        f"Differences are from {findings.labels[findings.reference]}{why}. "
        "p is the p-value of a t-test; p (Holm) is corrected for the number of comparisons. “Seeds needed” is the "
        "number of seeds needed to detect a difference of this size with 80% power."
    )


@once
def all_caveats(findings: Findings) -> list[str]:
    """The caveats about these runs; the last one is about best values."""
    found = [
        left_out(findings),
        limited_by(findings),
        *caveats.find_caveats(findings.runs),
        caveats.seconds_caveat(findings.runs),
        _copies(findings),
        _single_seeds(findings),
        caveats.OPTIMISTIC,
    ]
    return [caveat for caveat in found if caveat]


def left_out(findings: Findings) -> str | None:
    """Which runs have no part in the comparison because they were not measured at its step; None if all were."""
    states = findings.values.set_index("run")["state"]
    absent = findings.runs[findings.runs["run"].map(states).isin(["unfinished", "unmeasured"])]
    if absent.empty or math.isnan(findings.budget):
        return None
    listed = [f"{run} (at step {step})" for run, step in zip(absent["run"], absent["step"], strict=True)]
    return (
        f"Left out of the comparison at {findings.budget:,.0f} steps, because they have no validation loss at exactly "
        f"that step: {caveats.abbreviate(listed)}. {_include(findings, absent)}"
    )


def _include(findings: Findings, absent: DataFrame) -> str:
    """How runs that were left out of the comparison can be part of it."""
    behind = absent[(absent["step"] < findings.budget) & absent["status"].isin(["complete", "interrupted", "failed"])]
    if behind.empty:
        return "`gptlab report --at STEP` compares at a step that they were validated at."
    steps = f" --steps {findings.budget:.0f}" if (behind["steps"] < findings.budget).any() else ""
    return f"`gptlab resume RUN{steps}` brings them there, or `gptlab report --at STEP` compares at an earlier step."


def _single_seeds(findings: Findings) -> str | None:
    single = findings.summary.loc[findings.summary["n"] == 1, "experiment"].tolist()
    if not single:
        return None
    command = add_seeds(findings, single[0], advice.wanted_seeds(findings.seeds[single[0]]))
    listed = caveats.abbreviate([findings.labels[experiment] for experiment in single])
    return f"No interval, because there is only one seed: {listed}. Seeds are added with {command}."


def limited_by(findings: Findings) -> str | None:
    """Which experiments were measured no further than the common step, if others were; None if there are none."""
    if findings.at is not None:
        return None
    experiments = findings.metrics["run"].map(findings.runs.set_index("run")["experiment"])
    rows = {str(key): group for key, group in findings.metrics.groupby(experiments)}
    own = {
        str(key): replicates.budget(runs, rows[str(key)])
        for key, runs in findings.runs.groupby("experiment")
        if key in rows
    }
    furthest = max((step for step in own.values() if step > findings.budget), default=None)
    short = [findings.labels[experiment] for experiment, step in own.items() if step == findings.budget]
    if furthest is None or not short:
        return None
    return (
        f"The comparison is at {findings.budget:,.0f} steps because of {caveats.abbreviate(short)}; others were "
        f"measured up to step {furthest:.0f}, where `make report AT={furthest:.0f}` compares them."
    )


def _copies(findings: Findings) -> str | None:
    if findings.copies.empty:
        return None
    pairs = findings.copies[["directory", "run"]].itertuples(index=False, name=None)
    listed = [f"{Path(directory).name} (of {run})" for directory, run in pairs]
    return (
        f"Copies of runs, left out because their directory has another name than the run: {', '.join(listed)}. Where "
        "the run itself is gone, give the directory its id as name."
    )
