"""The contents of a report: its sentences, and its tables of strings. `page` and `markdown` format them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pandas import DataFrame, isna

from analysis import caveats, compare, formatting, replicates
from analysis.formatting import MISSING
from gptlab.terminal.text import format_duration

HOW_TO_READ = (
    "Losses are in nats per token. For a run, ± is the standard error over its validation windows: the uncertainty "
    "from the choice of validation text. For an experiment, the interval is a 95% t-interval over its seeds: the "
    "uncertainty from the seed. Runs with the same seed share their batches, so experiments are compared in pairs."
)

SIGNIFICANCE = 0.05
MAX_EXPERIMENTS = 30
"""Maximum number of rows in the tables of experiments."""

MAX_SETTING_COLUMNS = 4
"""If more settings differ, they share one column in the table of runs, so that it is not too wide."""

MAX_SAMPLES = 8


@dataclass(frozen=True)
class Findings:
    """Runs and the results derived from them. Each result is computed once."""

    runs: DataFrame
    """Rows of `load.runs()` by ascending validation loss."""
    metrics: DataFrame
    """Their rows of `load.metrics()`, in the order of `runs`."""
    samples: DataFrame
    """Their rows of `load.samples()`."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each experiment."""
        return compare.labels(self.runs)

    @cached_property
    def budget(self) -> float:
        """The number of steps at which experiments are compared."""
        return replicates.budget(self.runs, self.metrics)

    @cached_property
    def values(self) -> DataFrame:
        """Each run's validation loss at the budget."""
        return replicates.at_equal(self.runs, self.metrics, at=self.budget)

    @cached_property
    def summary(self) -> DataFrame:
        """Each experiment's mean at the budget, in ascending order."""
        return replicates.summary(self.values)

    @cached_property
    def reference(self) -> str:
        """The experiment that the others are compared with: the oldest one."""
        return str(self.runs["experiment"].iloc[int(self.runs["created"].argmin())])

    @cached_property
    def differences(self) -> DataFrame:
        """The difference of each other experiment from the reference, indexed by experiment."""
        return replicates.differences(self.runs, self.values, self.reference).set_index("experiment")

    @cached_property
    def questions(self) -> dict[str, str]:
        """The question of each experiment."""
        return dict(self.runs.drop_duplicates("experiment")[["experiment", "why"]].itertuples(index=False, name=None))


class Sample(NamedTuple):
    """A generated text and the run that it is from."""

    label: str
    """The label of its experiment."""
    description: str
    """The run, the step and the experiment's question."""
    prompt: str
    text: str


def analyze(runs: DataFrame, metrics: DataFrame, samples: DataFrame) -> Findings:
    """Return the findings about rows of `load.runs()`, `load.metrics()` and `load.samples()`."""
    ranked = compare.ranked(runs)
    rank = {run: number for number, run in enumerate(ranked["run"])}
    ordered = metrics.sort_values("run", key=lambda column: column.map(rank), kind="stable", ignore_index=True)
    return Findings(ranked, ordered, samples)


def headlines(findings: Findings) -> list[str]:
    """The main results: the best experiment, and whether its difference from the reference is significant."""
    best = findings.summary.iloc[0]
    if math.isnan(best["mean"]) or math.isinf(best["mean"]):
        return []
    interval = "" if isna(best["low"]) else f", 95% interval {best['low']:.4f} to {best['high']:.4f}"
    seeds = best["seeds"] - best["unfinished"]
    lines = [
        f"Lowest validation loss: {findings.labels[best['experiment']]}, {best['mean']:.4f} nats per token after "
        f"{findings.budget:,.0f} steps (mean of {'one seed' if seeds == 1 else f'{seeds:.0f} seeds'}{interval})."
    ]
    if best["experiment"] != findings.reference and best["experiment"] in findings.differences.index:
        row = findings.differences.loc[best["experiment"]]
        reference = findings.labels[findings.reference]
        if isna(row["p"]):
            lines.append(f"It is unknown whether its difference from {reference} is significant: {row['why']}.")
        else:
            verdict = "significant" if row["p_holm"] < SIGNIFICANCE else "not significant"
            lines.append(
                f"Its difference from {reference}, {row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}, "
                f"{row['how']}), is {verdict}: p = {formatting.p_value(row['p_holm'])} after correction for "
                f"{findings.differences['p'].notna().sum()} comparisons."
            )
    return lines


def comparison_note(findings: Findings) -> str:
    """How to read the comparison of experiments; empty if there is only one."""
    if len(findings.summary) < 2:
        return ""
    return (
        f"Differences are from {findings.labels[findings.reference]}, the oldest experiment. p is the p-value of a "
        "t-test; p (Holm) is corrected for the number of comparisons. “Seeds needed” is the number of seeds needed to "
        "detect a difference of this size with 80% power."
    )


def all_caveats(findings: Findings) -> list[str]:
    """The caveats about these runs; the last one is about best values."""
    summary = findings.summary
    single = [findings.labels[experiment] for experiment in summary.loc[summary["seeds"] == 1, "experiment"]]
    no_replicates = [f"No interval, because there is only one seed: {caveats.abbreviate(single)}."] if single else []
    return [*caveats.find_caveats(findings.runs), *no_replicates, caveats.OPTIMISTIC]


def experiment_table(findings: Findings) -> DataFrame:
    """One row per experiment, best first: its mean at equal steps and its difference from the reference."""
    rows = []
    for row in findings.summary.head(MAX_EXPERIMENTS).to_dict("records"):
        cells = {
            "experiment": findings.labels[row["experiment"]],
            "seeds": _seeds(row),
            f"val loss at {formatting.count(findings.budget)} steps": formatting.loss(row["mean"]),
            "95% interval": formatting.interval(row["low"], row["high"]),
        }
        rows.append(cells | (_difference(findings, row["experiment"]) if len(findings.summary) > 1 else {}))
    return DataFrame(rows, dtype="str")


def cost_table(findings: Findings) -> DataFrame:
    """One row per experiment, best first: its steps to the reference's loss, and its mean at equal FLOPs and time."""
    is_reference = findings.values["experiment"] == findings.reference
    target = findings.values.loc[is_reference, "value"].max()  # the loss that all seeds of the reference reach
    steps = (
        replicates.steps_to_reach(findings.metrics, target)
        .groupby(findings.runs.set_index("run")["experiment"])
        .agg(lambda steps: steps.mean() if steps.notna().all() else math.nan)
    )
    experiments = findings.summary["experiment"].head(MAX_EXPERIMENTS)
    table = {"experiment": experiments.map(findings.labels)}
    if math.isfinite(target):
        table[f"steps to loss {target:.3f}"] = experiments.map(steps).map(formatting.count)
    for by, unit in {"flops": "{:.2g} FLOPs", "elapsed_s": "{}"}.items():
        budget = replicates.budget(findings.runs, findings.metrics, by)
        if math.isfinite(budget):
            values = replicates.at_equal(findings.runs, findings.metrics, by, at=budget)
            means = replicates.summary(values).set_index("experiment")["mean"]
            at = unit.format(budget if by == "flops" else format_duration(budget))
            table[f"val loss at {at}"] = experiments.map(means).map(formatting.loss)
    return DataFrame(table, dtype="str")


def run_table(findings: Findings) -> DataFrame:
    """One row per run, best first: its progress, its newest losses and the settings that differ."""
    runs = findings.runs
    several_yardsticks = runs["val/yardstick"].nunique() > 1
    cells = {
        "run": runs["run"],
        "status": runs["status"],
        "step": [f"{a}" if a == b else f"{a} of {b}" for a, b in zip(runs["step"], runs["steps"], strict=True)],
        "train loss": runs["train/loss"].map(formatting.loss),
        "val loss": [
            formatting.loss(loss) + formatting.standard_error(error)
            for loss, error in zip(runs["val/loss"], runs["val/loss_se"], strict=True)
        ],
        "bits/byte": runs["val/bpb"].map(formatting.loss),
        "best val (optimistic)": [
            formatting.loss(loss) if isna(step) else f"{formatting.loss(loss)} @ {step}"
            for loss, step in zip(runs["best/val_loss"], runs["best/step"], strict=True)
        ],
        **({"yardstick": runs["val/yardstick"]} if several_yardsticks else {}),
        **_settings(findings),
    }
    return DataFrame(cells, dtype="str").fillna(MISSING)


def speed_table(findings: Findings) -> DataFrame:
    """One row per run, best first: its speed, its peak memory and its training time."""
    runs = findings.runs
    cells = {
        "run": runs["run"],
        "tokens/s": runs["perf/tokens_per_s"].map(formatting.count),
        "GiB": runs["perf/peak_mem_gib"].map(lambda value: MISSING if isna(value) else f"{value:.2f}"),
        "time": runs["elapsed_s"].map(lambda s: format_duration(s) if math.isfinite(s) else MISSING),
    }
    return DataFrame(cells, dtype="str")


def provenance_table(findings: Findings) -> DataFrame:
    """The number of runs for each combination of code, text and machine."""
    keys = ["git_commit", "diff_sha256", "text.source", "text.sha256", "device", "threads", "torch", "host"]
    rows = findings.runs[keys].astype("str").fillna(MISSING)
    for column in ("git_commit", "diff_sha256", "text.sha256"):
        rows[column] = rows[column].str[:8]
    counted = rows.groupby(keys, sort=False).size().reset_index(name="runs").astype("str")
    names = {
        "git_commit": "commit",
        "diff_sha256": "uncommitted changes",
        "text.source": "text",
        "text.sha256": "text SHA-256",
    }
    return counted.rename(columns=names)[["runs", *(names.get(key, key) for key in keys)]]


def newest_samples(findings: Findings) -> list[Sample]:
    """The newest sample of the best run of each experiment."""
    newest = findings.samples.drop_duplicates("run", keep="last")
    table = findings.runs[["run", "experiment", "why"]].merge(newest[["run", "step", "prompt", "text"]], on="run")
    rows = table.drop_duplicates("experiment").head(MAX_SAMPLES).itertuples(index=False, name=None)
    return [
        Sample(findings.labels[experiment], f"{run}, step {step}. Question: {why}", prompt, text)
        for run, experiment, why, step, prompt, text in rows
    ]


def _settings(findings: Findings) -> dict[str, list[str]]:
    """The settings that differ between the runs, as columns of `run_table`."""
    runs = findings.runs
    differing = compare.differing_columns(runs)
    cells = {column: runs[column].map(formatting.setting).tolist() for column in differing}
    if len(differing) <= MAX_SETTING_COLUMNS:
        return cells
    rows = [dict(zip(differing, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    reference = rows[runs["experiment"].tolist().index(findings.reference)]
    changes = [", ".join(f"{key}={value}" for key, value in row.items() if value != reference[key]) for row in rows]
    return {"changes from the reference": [change or MISSING for change in changes]}


def _seeds(row: Mapping[Any, Any]) -> str:
    """The number of seeds, and the numbers of diverged and unfinished ones."""
    extra = [f"{row[state]} {state}" for state in ("diverged", "unfinished") if row[state]]
    return ", ".join([str(row["seeds"]), *extra])


def _difference(findings: Findings, experiment: str) -> dict[str, str]:
    """The cells about an experiment's difference from the reference."""
    names = ("difference", "interval of difference", "p", "p (Holm)", "seeds needed", "comparison")
    if experiment == findings.reference:
        return dict(zip(names, (*[MISSING] * 5, "reference"), strict=True))
    row: Mapping[Any, Any] = findings.differences.loc[experiment].to_dict()
    compared = row["how"] != "not compared"
    mean = MISSING if isna(row["mean"]) else f"{row['mean']:+.4f}"
    cells = (
        mean if compared else row["how"],
        formatting.interval(row["low"], row["high"], "+"),
        formatting.p_value(row["p"]),
        formatting.p_value(row["p_holm"]),
        formatting.count(row["seeds_needed"]),
        "; ".join(part for part in (row["how"] if compared else "", row["why"]) if part),
    )
    return dict(zip(names, cells, strict=True))
