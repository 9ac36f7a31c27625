"""The answer to each question: an experiment's difference from the reference, its uncertainty and what that means."""

import math
from collections.abc import Mapping
from typing import Any

from pandas import isna

from analysis import advice, formatting, replicates
from analysis.findings import Findings, mixed_seeds, once
from gptlab.terminal.text import plural
from gptlab.tracking.decision_sentences import sentence

SIGNIFICANCE = 0.05
BETTER, WORSE, CHANCE = "significantly better", "significantly worse", "could be chance"
BETTER_DIVERGED, WORSE_DIVERGED = "the reference diverged", "it diverged"

MAX_VERDICTS = 5
"""Maximum number of comparisons among the headlines. The others are counted."""


@once
def verdicts(findings: Findings) -> dict[str, str]:
    """One sentence per experiment (`NAME-HASH8`), the clearest differences first and the reference last.

    The sentence of the reference is its mean. All experiments are there, also those without a value.
    """
    order = _by_clarity(findings)
    (reference,) = findings.summary[findings.summary["experiment"] == findings.reference].to_dict("records")
    sentences = {experiment: _verdict(findings, experiment) for experiment in order}
    return sentences | {findings.reference: f"The reference: {mean(findings, reference)}"}


def clearest(findings: Findings) -> list[str]:
    """The sentences of the clearest differences, and one that counts the others."""
    order = _by_clarity(findings)
    lines = [_verdict(findings, experiment) for experiment in order[:MAX_VERDICTS]]
    rest = [_kind(findings, experiment) for experiment in order[MAX_VERDICTS:]]
    kinds = [f"{rest.count(kind)} {kind}" for kind in dict.fromkeys(rest)]
    return [*lines, f"{plural(len(rest), 'more comparison')}: {', '.join(kinds)}."] if rest else lines


def mean(findings: Findings, row: Mapping[Any, Any]) -> str:
    """The mean of an experiment, with its number of seeds and its interval.

    Args:
        findings: The report's contents.
        row: The experiment's row of `findings.summary`.
    """
    if isna(row["mean"]):
        return f"no {findings.measure.name} at the step of the comparison."
    value = "diverged" if math.isinf(row["mean"]) else f"{row['mean']:.4f} {findings.measure.unit}"
    seeds = "one seed" if row["n"] == 1 else f"{row['n']:.0f} seeds"
    mixed = mixed_seeds(findings, row["experiment"])
    differing = f", {mixed} of them with attempts that differ in code or environment" if mixed else ""
    interval = "" if isna(row["low"]) else f", 95% interval {row['low']:.4f} to {row['high']:.4f}"
    return f"{value} after {findings.budget:,.0f} steps (mean of {seeds}{differing}{interval})."


def add_seeds(findings: Findings, experiment: str, seeds: list[int]) -> str:
    """The command that trains an experiment with these seeds."""
    run = findings.first_runs[experiment]
    return advice.add_seeds(run, seeds, findings.varied[run["name"]])


def _by_clarity(findings: Findings) -> list[str]:
    """The compared experiments: decided ones, then by ascending p-value; those without one come last."""
    ordered = findings.differences.sort_values("p", kind="stable", na_position="last").index
    return sorted(ordered, key=lambda experiment: experiment not in findings.decided)


def _verdict(findings: Findings, experiment: str) -> str:
    if experiment in findings.decided:
        return _decided(findings, experiment)
    row = _difference(findings, experiment)
    pair = f"{findings.labels[experiment]} − {findings.labels[findings.reference]}"
    if row["how"] == "not compared":
        return f"{pair} is unknown: {row['why']}{_earlier_step(findings, experiment)}."
    if row["n"] == 0:
        return f"{pair} is unknown: they have no seed in common; {_find_out(findings, experiment)}."
    if not math.isfinite(row["mean"]):
        return f"{pair} is infinite or undefined, because a seed diverged: {_meaning(row)}."
    value = f"{pair} = {formatting.signed(row['mean'])}"
    if isna(row["p"]):
        single = f"one seed cannot show whether this is chance; {_find_out(findings, experiment)}"
        why = single if row["n"] == 1 else "the values of its seeds are all equal"
        return f"{value} {findings.measure.unit}, without an interval: {why}."
    interval = f"95% interval {formatting.signed(row['low'])} to {formatting.signed(row['high'])}"
    compared = int(findings.differences["p"].notna().sum())
    corrected = f" after correction for {compared} comparisons" if compared > 1 else ""
    return (
        f"{value} ± {(row['high'] - row['low']) / 2:.4f} {findings.measure.unit} ({interval}), "
        f"{formatting.p_statement(row['p_holm'])}{corrected}, {_replicates(row)}: {_meaning(row)}."
    )


def _decided(findings: Findings, experiment: str) -> str:
    """The sentence of `gptlab decide`, and how many decisions there are if they do not share the error."""
    decision, count = findings.decided[experiment], len(findings.decided)
    labels = findings.labels
    text = sentence(decision, labels[decision.reference], labels[decision.experiment])
    shared = f" (as one of {decision.comparisons}, but there are {count} here)" if count > decision.comparisons else ""
    return f"Decided by `gptlab decide`: {text}{shared}."


def _kind(findings: Findings, experiment: str) -> str:
    """What an experiment is counted as."""
    decision = findings.decided.get(experiment)
    return f"decided ({decision.verdict})" if decision else _meaning(_difference(findings, experiment))


def _difference(findings: Findings, experiment: str) -> Mapping[Any, Any]:
    """An experiment's row of `findings.differences`."""
    return findings.differences.loc[experiment].to_dict()


def _meaning(row: Mapping[Any, Any]) -> str:
    """What a row of `findings.differences` says about the experiment."""
    if math.isinf(row["mean"]):
        return WORSE_DIVERGED if row["mean"] > 0 else BETTER_DIVERGED
    if isna(row["p_holm"]):
        return "unknown"
    return CHANCE if row["p_holm"] >= SIGNIFICANCE else BETTER if row["mean"] < 0 else WORSE


def _replicates(row: Mapping[Any, Any]) -> str:
    """How many seeds a difference is from, and the limits of the comparison."""
    seeds = plural(int(row["n"]), "seed")
    how = f"{seeds} paired" if row["how"].startswith("paired") else f"at least {seeds} each, unpaired"
    return f"{how} ({row['why']})" if row["why"] else how


def _find_out(findings: Findings, experiment: str) -> str:
    """The commands that give an experiment and the reference the same seeds."""
    pair = (findings.reference, experiment)
    wanted = advice.wanted_seeds(*(findings.seeds[key] for key in pair))
    commands = [add_seeds(findings, key, wanted) for key in pair if findings.seeds[key] != wanted]
    return f"find out with {' and '.join(commands)}"


def _earlier_step(findings: Findings, experiment: str) -> str:
    """Where an experiment that has no value at the step of the comparison can be compared."""
    pair = findings.runs[findings.runs["experiment"].isin([findings.reference, experiment])]
    step = replicates.budget(pair, findings.metrics, column=findings.measure.column)
    common = replicates.at_equal(pair, findings.metrics, column=findings.measure.column, at=step)
    reached = common.loc[common["state"] == "reached", "experiment"].nunique() == 2
    return f"; compare them with --at {step:.0f}" if reached and step != findings.budget else ""
