"""The sentences of a report: headlines, caveats and how to read its tables."""

import math
from pathlib import Path

from pandas import Series, isna

from analysis import caveats, formatting, replicates
from analysis.findings import Findings, mixed_seeds
from analysis.measures import LOSS

HOW_TO_READ = (
    "Losses are in nats per token. For a run, ± is the standard error over its validation windows: the uncertainty "
    "from the choice of validation text. For an experiment, the interval is a 95% t-interval over its seeds: the "
    "uncertainty from the seed. Runs with the same seed share their batches, so experiments are compared in pairs."
)
COST_NOTE = (
    "≈ marks a mean with values that are interpolated between two measurements; numbers of steps to a loss are always "
    "interpolated. Seconds depend on the machine and on what else it computed; CPU time is the sum over all threads."
)
TREE_NOTE = (
    "A branch continues from its parent's weights and moments, and its steps, tokens, FLOPs and seconds include its "
    "parent's up to there."
)

SIGNIFICANCE = 0.05


def headlines(findings: Findings) -> list[str]:
    """The main results: the best experiment, and whether its difference from the reference is significant."""
    best, measure = findings.summary.iloc[0], findings.measure
    if math.isnan(best["mean"]) or math.isinf(best["mean"]):
        return []
    if findings.values["yardstick"].nunique() > 1:
        on = "sets of windows" if measure is LOSS else "texts"
        return [f"No lowest {measure.name}: the experiments were validated on different {on}."]
    lines = [
        f"Lowest {measure.name}: {findings.labels[best['experiment']]}, {best['mean']:.4f} {measure.unit} after "
        f"{findings.budget:,.0f} steps ({_mean_of(findings, best)})."
    ]
    if best["experiment"] != findings.reference and best["experiment"] in findings.differences.index:
        row = findings.differences.loc[best["experiment"]]
        reference = findings.labels[findings.reference]
        if isna(row["p"]):
            lines.append(f"It is unknown whether its difference from {reference} is significant: {row['why']}.")
        else:
            verdict = "significant" if row["p_holm"] < SIGNIFICANCE else "not significant"
            how = "; ".join(part for part in (row["how"], row["why"]) if part)
            lines.append(
                f"Its difference from {reference}, {row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}, "
                f"{how}), is {verdict}: p = {formatting.p_value(row['p_holm'])} after correction for "
                f"{findings.differences['p'].notna().sum()} comparisons."
            )
    return lines


def _mean_of(findings: Findings, row: Series) -> str:
    """The number of seeds in an experiment's mean, and its interval."""
    seeds = "one seed" if row["n"] == 1 else f"{row['n']:.0f} seeds"
    mixed = mixed_seeds(findings, row["experiment"])
    differing = f", {mixed} of them with attempts that differ in code or environment" if mixed else ""
    interval = "" if isna(row["low"]) else f", 95% interval {row['low']:.4f} to {row['high']:.4f}"
    return f"mean of {seeds}{differing}{interval}"


def comparison_note(findings: Findings) -> str:
    """How to read the comparison of experiments; empty if there is only one."""
    if len(findings.summary) < 2:
        return ""
    return (
        f"Differences are from {findings.labels[findings.reference]}, the oldest experiment with a loss at that step. "
        "p is the p-value of a t-test; p (Holm) is corrected for the number of comparisons. “Seeds needed” is the "
        "number of seeds needed to detect a difference of this size with 80% power."
    )


def all_caveats(findings: Findings) -> list[str]:
    """The caveats about these runs; the last one is about best values."""
    summary = findings.summary
    single = [findings.labels[experiment] for experiment in summary.loc[summary["n"] == 1, "experiment"]]
    found = [
        left_out(findings),
        limited_by(findings),
        *caveats.find_caveats(findings.runs),
        caveats.seconds_caveat(findings.runs),
        _copies(findings),
        f"No interval, because there is only one seed: {caveats.abbreviate(single)}." if single else None,
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
        f"that step: {caveats.abbreviate(listed)}."
    )


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
    return f"Copies of runs, left out because their directory has another name than the run: {', '.join(listed)}."
