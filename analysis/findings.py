"""The contents of a report, as tables of strings. `sentences` has its texts; `page` and `markdown` format both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

from pandas import DataFrame, Series, isna

from analysis import attempts, columns, compare, formatting, replicates
from analysis.formatting import MISSING
from analysis.measures import LOSS, Measure, measure_of
from gptlab.terminal.text import format_duration
from gptlab.tracking.decisions import Decision

MAX_EXPERIMENTS = 30
"""Maximum number of rows in the tables of experiments."""

MAX_SETTING_COLUMNS = 4
"""If more settings differ, they share one column in the table of runs, so that it is not too wide."""

MAX_SAMPLES = 8

Result = TypeVar("Result")

HASHES = ("git_commit", "diff_sha256", "text.sha256")
NOT_VERIFIED = "not verified"
"""Columns that are shortened to eight digits."""


@dataclass(frozen=True)
class Findings:
    """Runs and the results derived from them. Each result is computed once."""

    runs: DataFrame
    """Rows of `load.runs()` by ascending validation loss."""
    metrics: DataFrame
    """Their rows of `load.metrics()`, in the order of `runs`."""
    samples: DataFrame
    """Their rows of `load.samples()`."""
    copies: DataFrame = field(default_factory=lambda: DataFrame(columns=list(columns.COPIES)))
    """The copies of runs that were left out, from `load.runs_and_copies()`."""
    at: int | None = None
    """The number of steps at which experiments are compared, if the user has chosen one."""
    against: str | None = None
    """The experiment that the others are compared with, if the user has chosen one."""
    decisions: Sequence[Decision] = ()
    """The stored decisions of `gptlab decide`."""
    computed: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Results of functions by function; see `once`."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each experiment."""
        return compare.labels(self.runs)

    @cached_property
    def varied(self) -> dict[str, list[str]]:
        """The columns that differ between the runs of each name."""
        return {str(name): compare.differing_columns(runs) for name, runs in self.runs.groupby("name")}

    @cached_property
    def first_runs(self) -> dict[str, dict[Any, Any]]:
        """One run of each experiment."""
        return {row["experiment"]: row for row in self.runs.drop_duplicates("experiment").to_dict("records")}

    @cached_property
    def measure(self) -> Measure:
        """What experiments are compared by."""
        return measure_of(self.runs)

    @cached_property
    def budget(self) -> float:
        """The number of steps at which experiments are compared."""
        return replicates.budget(self.runs, self.metrics) if self.at is None else float(self.at)

    @cached_property
    def values(self) -> DataFrame:
        """Each run's validation loss, or bits per byte, at the budget."""
        return replicates.at_equal(self.runs, self.metrics, at=self.budget)

    @cached_property
    def seeds(self) -> dict[str, list[int]]:
        """The seeds of each experiment that have a value at the budget, in ascending order."""
        known = self.values[self.values["state"].isin(replicates.KNOWN)]
        return {str(experiment): sorted(seeds) for experiment, seeds in known.groupby("experiment")["seed"]}

    @cached_property
    def summary(self) -> DataFrame:
        """Each experiment's mean at the budget, in ascending order."""
        return replicates.summary(self.values)

    @cached_property
    def mixed(self) -> set[str]:
        """The runs with attempts that differ in code or environment."""
        return set(self.runs.loc[attempts.mixed(self.runs) != "", "run"])

    @cached_property
    def reference(self) -> str:
        """The experiment that the others are compared with: the chosen one, else the oldest one with a value there."""
        if self.against is not None:
            return self.against
        compared = self.summary.loc[self.summary["n"] > 0, "experiment"]
        runs = self.runs[self.runs["experiment"].isin(compared)] if len(compared) else self.runs
        return str(runs["experiment"].iloc[int(runs["created"].argmin())])

    @cached_property
    def differences(self) -> DataFrame:
        """The difference of each other experiment from the reference, indexed by experiment."""
        return replicates.differences(self.runs, self.values, self.reference).set_index("experiment")

    @cached_property
    def decided(self) -> dict[str, Decision]:
        """The decision between each other experiment and the reference at the budget, where there is one."""
        seen = [
            decision.seen_from(self.reference)
            for decision in self.decisions
            if self.reference in {decision.reference, decision.experiment} and decision.steps == self.budget
        ]
        compared = set(self.differences.index) if self.measure is LOSS else set()
        ended = {"better", "worse", "equal", "undecided"}
        return {each.experiment: each for each in seen if each.experiment in compared and each.verdict in ended}

    @cached_property
    def questions(self) -> dict[str, str]:
        """The question of each experiment."""
        return dict(self.runs.drop_duplicates("experiment")[["experiment", "why"]].itertuples(index=False, name=None))


def once(compute: Callable[[Findings], Result]) -> Callable[[Findings], Result]:
    """Decorate a function that both formats of the report call: it computes once per findings."""

    @wraps(compute)
    def remembered(findings: Findings) -> Result:
        if compute not in findings.computed:
            findings.computed[compute] = compute(findings)
        result: Result = findings.computed[compute]
        return result

    return remembered


class Sample(NamedTuple):
    """A generated text and the run that it is from."""

    label: str
    """The label of its experiment."""
    description: str
    """The run, the step and the experiment's question."""
    prompt: str
    text: str


def analyze(runs: DataFrame, metrics: DataFrame, samples: DataFrame, **options: Any) -> Findings:
    """Return the findings about rows of `load.runs()`, `load.metrics()` and `load.samples()`.

    `options` are the other fields of `Findings`.
    """
    ranked = compare.ranked(runs)
    rank = {run: number for number, run in enumerate(ranked["run"])}
    ordered = metrics.sort_values("run", key=lambda column: column.map(rank), kind="stable", ignore_index=True)
    return Findings(ranked, ordered, samples, **options)


def mixed_seeds(findings: Findings, experiment: str) -> int:
    """The number of seeds of an experiment whose attempts differ in code or environment."""
    values = findings.values
    counted = values[(values["experiment"] == experiment) & values["state"].isin(replicates.KNOWN)]
    return int(counted["run"].isin(findings.mixed).sum())


def experiment_table(findings: Findings) -> DataFrame:
    """One row per experiment, best first: its mean at equal steps and its difference from the reference."""
    rows = []
    for row in findings.summary.head(MAX_EXPERIMENTS).to_dict("records"):
        cells = {
            "experiment": findings.labels[row["experiment"]],
            "seeds": _seeds(findings, row),
            f"{findings.measure.short} at {formatting.count(findings.budget)} steps": formatting.loss(row["mean"]),
            "95% interval": formatting.interval(row["low"], row["high"]),
        }
        rows.append(cells | (_difference(findings, row["experiment"]) if len(findings.summary) > 1 else {}))
    return DataFrame(rows, dtype="str")


@once
def cost_table(findings: Findings) -> DataFrame:
    """One row per experiment, best first: its steps to the reference's loss, and its mean at equal FLOPs and time."""
    experiments = findings.summary["experiment"].head(MAX_EXPERIMENTS)
    table = {"experiment": experiments.map(findings.labels)}
    target = _reference_loss(findings)
    if math.isfinite(target):
        goal = f"loss {target:.3f}" if findings.measure is LOSS else f"{target:.3f} {findings.measure.short}"
        table[f"steps to {goal}"] = experiments.map(_steps_to(findings, target)).map(formatting.count)
    for by, unit in {"flops": "{:.2g} FLOPs", "elapsed_s": "{}", "cpu_s": "{} of CPU time"}.items():
        budget = replicates.budget(findings.runs, findings.metrics, by)
        if math.isfinite(budget):
            values = replicates.at_equal(findings.runs, findings.metrics, by, at=budget)
            means = replicates.summary(values).set_index("experiment")
            cells = {
                experiment: ("≈ " if row["interpolated"] and math.isfinite(row["mean"]) else "")
                + formatting.loss(row["mean"])
                for experiment, row in means.iterrows()
            }
            at = unit.format(budget if by == "flops" else format_duration(budget))
            table[f"{findings.measure.short} at {at}"] = experiments.map(cells)
    return DataFrame(table, dtype="str")


def _reference_loss(findings: Findings) -> float:
    """The loss that all seeds of the reference reach."""
    values = findings.values
    return float(values.loc[values["experiment"] == findings.reference, "value"].max())


def _steps_to(findings: Findings, target: float) -> Series:
    """The mean number of steps to a loss by experiment; NaN if a seed does not reach it or has another yardstick."""
    values = findings.values[findings.values["state"].isin(replicates.KNOWN)]
    own = values.loc[values["experiment"] == findings.reference, "yardstick"].dropna()
    comparable = values[values["yardstick"].isin(own) | values["yardstick"].isna()].set_index("run")
    steps = replicates.steps_to_reach(findings.metrics, target, findings.measure.column).reindex(comparable.index)
    return steps.groupby(comparable["experiment"]).agg(lambda seeds: seeds.mean() if seeds.notna().all() else math.nan)


def run_table(findings: Findings) -> DataFrame:
    """One row per run, best first: its progress, its newest losses and the settings that differ."""
    runs = findings.runs
    several_yardsticks = runs["val/yardstick"].nunique() > 1
    cells = {
        "run": runs["run"],
        "status": runs["status"].mask(runs["damage"].notna(), runs["status"] + ", metrics damaged"),
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
        "time": runs["elapsed_s"].map(_duration),
        "CPU time": runs["cpu_s"].map(_duration),
    }
    return DataFrame(cells, dtype="str")


def _duration(seconds: float) -> str:
    return format_duration(seconds) if math.isfinite(seconds) else MISSING


def provenance_table(findings: Findings) -> DataFrame:
    """The number of runs for each combination of code, text and machine, with what changed between attempts.

    It says what `gptlab verify` found, if a run was verified.
    """
    keys = ["git_commit", "diff_sha256", "text.source", "text.sha256", "device", "threads", "torch", "host"]
    cells = {
        key: attempts.values(findings.runs, key).map(lambda values, key=key: _successive(values, shorten=key in HASHES))
        for key in keys
    }
    if findings.runs["verified"].notna().any():
        keys.append("verified")
        cells["verified"] = findings.runs["verified"].fillna(NOT_VERIFIED)
    rows = DataFrame(cells, dtype="str")
    counted = rows.groupby(keys, sort=False).size().reset_index(name="runs").astype("str")
    names = {
        "git_commit": "commit",
        "diff_sha256": "uncommitted changes",
        "text.source": "text",
        "text.sha256": "text SHA-256",
    }
    return counted.rename(columns=names)[["runs", *(names.get(key, key) for key in keys)]]


def _successive(values: list[Any], *, shorten: bool) -> str:
    return attempts.then((None if value is None else str(value)[: 8 if shorten else None] for value in values), MISSING)


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


def _seeds(findings: Findings, row: Mapping[Any, Any]) -> str:
    """The number of seeds, and the numbers of those with a special state."""
    counts = {**{state: row[state] for state in replicates.STATES}, "mixed": mixed_seeds(findings, row["experiment"])}
    return ", ".join([str(row["seeds"]), *(f"{count} {state}" for state, count in counts.items() if count)])


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
