"""What a report says: sentences, and tables whose cells are strings. HTML and Markdown only dress it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pandas import DataFrame, isna

from analysis import cautions, compare, replicates
from gptlab.console import duration

NOTHING = "–"
READING = (
    "Losses are nats per token. Behind a run, ± is the standard error over its validation windows: how far the loss on "
    "other parts of the text could be off. Behind an experiment stands a 95% t-interval over its seeds: how far other "
    "seeds could be. Runs of one seed share their batches, so experiments are compared in pairs."
)


@dataclass(frozen=True)
class Findings:
    """Runs, and what is derived from them once."""

    runs: DataFrame
    """Rows of `load.runs()`, the lowest validation loss first."""
    metrics: DataFrame
    """Their rows of `load.metrics()`, in that order."""
    samples: DataFrame
    """Their rows of `load.samples()`."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """What to call each experiment."""
        return compare.labels(self.runs)

    @cached_property
    def at(self) -> float:
        """The steps at which experiments are compared."""
        return replicates.budget(self.runs, self.metrics)

    @cached_property
    def values(self) -> DataFrame:
        """Each run's validation loss there."""
        return replicates.at_equal(self.runs, self.metrics, at=self.at)

    @cached_property
    def summary(self) -> DataFrame:
        """Each experiment's mean there, the lowest first."""
        return replicates.summary(self.values)

    @cached_property
    def reference(self) -> str:
        """The experiment that the others are compared with: the oldest."""
        return str(self.runs["experiment"].iloc[int(self.runs["created"].argmin())])

    @cached_property
    def differences(self) -> DataFrame:
        """Each other experiment's difference to it, by experiment."""
        return replicates.differences(self.runs, self.values, self.reference).set_index("experiment")

    @cached_property
    def why(self) -> dict[str, str]:
        """Each experiment's question."""
        return dict(self.runs.drop_duplicates("experiment")[["experiment", "why"]].itertuples(index=False, name=None))


def find(runs: DataFrame, metrics: DataFrame, samples: DataFrame) -> Findings:
    """Findings about rows of `load.runs()`, `load.metrics()` and `load.samples()`."""
    ranked = compare.ranked(runs)
    rank = {run: number for number, run in enumerate(ranked["run"])}
    ordered = metrics.sort_values("run", key=lambda column: column.map(rank), kind="stable", ignore_index=True)
    return Findings(ranked, ordered, samples)


def answers(found: Findings) -> list[str]:
    """What somebody wants to know first: which is best, and is the difference real."""
    best = found.summary.iloc[0]
    if math.isnan(best["mean"]) or math.isinf(best["mean"]):
        return []
    steps = f"after {found.at:,.0f} steps"
    interval = "" if isna(best["low"]) else f", 95% interval {best['low']:.4f} to {best['high']:.4f}"
    label = found.labels[best["experiment"]]
    seeds = _seeds(best["seeds"] - best["unfinished"])
    said = [f"Lowest: {label}, {best['mean']:.4f} nats per token {steps} (mean of {seeds}{interval})."]
    if best["experiment"] != found.reference and best["experiment"] in found.differences.index:
        row = found.differences.loc[best["experiment"]]
        reference = found.labels[found.reference]
        if isna(row["p"]):
            said.append(f"Whether its difference to {reference} is real, these runs cannot tell: {row['why']}.")
        else:
            verdict = "is real" if row["p_holm"] < 0.05 else "could be chance"
            said.append(
                f"Its difference to {reference}, {row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}, "
                f"{row['how']}), {verdict}: p = {p_value(row['p_holm'])} after correction for "
                f"{found.differences['p'].notna().sum()} comparisons."
            )
    return said


def how(found: Findings) -> str:
    """How to read the comparison of experiments; nothing where there is only one."""
    if len(found.summary) < 2:
        return ""
    return (
        f"Differences are to {found.labels[found.reference]}, the oldest experiment. p is that of a paired t-test, and "
        "Holm's is corrected for the number of comparisons; “seeds needed” would show a difference of this size in "
        "four of five tries."
    )


def experiment_table(found: Findings, most: int = 30) -> DataFrame:
    """A row per experiment: its mean at equal steps, FLOPs and time, and its difference to the reference."""
    budgets = {by: replicates.budget(found.runs, found.metrics, by) for by in ("flops", "elapsed_s")}
    equal = {
        by: replicates.summary(replicates.at_equal(found.runs, found.metrics, by, at=at)).set_index("experiment")[
            "mean"
        ]
        for by, at in budgets.items()
    }
    target = found.values.loc[
        found.values["experiment"] == found.reference, "value"
    ].max()  # all of its seeds get there
    reached = (
        replicates.steps_to_reach(found.metrics, target)
        .groupby(found.runs.set_index("run")["experiment"])
        .agg(lambda steps: steps.mean() if steps.notna().all() else math.nan)
    )
    rows = []
    for row in found.summary.head(most).to_dict("records"):
        key = row["experiment"]
        cells = {
            "experiment": found.labels[key],
            "seeds": _counts(row),
            f"val loss at {whole(found.at)} steps": number(row["mean"]),
            "95% interval": span(row["low"], row["high"]),
            **_difference_cells(found, key),
        }
        if math.isfinite(target):
            cells[f"steps to {target:.3f}"] = whole(reached.get(key, math.nan))
        if math.isfinite(budgets["flops"]):
            cells[f"at {budgets['flops']:.2g} FLOPs"] = number(equal["flops"].get(key, math.nan))
        if math.isfinite(budgets["elapsed_s"]):
            cells[f"at {duration(budgets['elapsed_s'])}"] = number(equal["elapsed_s"].get(key, math.nan))
        rows.append(cells)
    table = DataFrame(rows, dtype="str")
    return table if len(found.summary) > 1 else table.drop(columns=_COMPARED, errors="ignore")


_COMPARED = ["difference", "its interval", "p", "Holm's p", "seeds needed", "compared"]


def _difference_cells(found: Findings, key: str) -> dict[str, str]:
    if key == found.reference:
        return dict(zip(_COMPARED, [NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, "the reference"], strict=True))
    row: Mapping[Any, Any] = found.differences.loc[key].to_dict()
    mean = "not compared" if row["how"] == "not compared" else NOTHING if isna(row["mean"]) else f"{row['mean']:+.4f}"
    words = "; ".join(part for part in (row["how"] if row["how"] != "not compared" else "", row["why"]) if part)
    cells = [
        mean,
        span(row["low"], row["high"], "+"),
        p_value(row["p"]),
        p_value(row["p_holm"]),
        whole(row["seeds_needed"]),
        words,
    ]
    return dict(zip(_COMPARED, cells, strict=True))


def run_table(found: Findings) -> DataFrame:
    """A row per run, the best first: where it stands, its newest numbers, its cost, and only what differs."""
    table = found.runs
    several = len(set(table["val/yardstick"].dropna())) > 1
    shown = {
        "run": table["run"],
        "status": table["status"],
        "step": [f"{a}" if a == b else f"{a} of {b}" for a, b in zip(table["step"], table["steps"], strict=True)],
        "train loss": table["train/loss"].map(number),
        "val loss": [number(a) + error(b) for a, b in zip(table["val/loss"], table["val/loss_se"], strict=True)],
        "bits/byte": table["val/bpb"].map(number),
        "best val (optimistic)": [
            number(a) if isna(b) else f"{number(a)} @ {b}"
            for a, b in zip(table["best/val_loss"], table["best/step"], strict=True)
        ],
        "tokens/s": table["perf/tokens_per_s"].map(whole),
        "GiB": table["perf/peak_mem_gib"].map(lambda value: NOTHING if isna(value) else f"{value:.2f}"),
        "time": table["elapsed_s"].map(lambda s: duration(s) if math.isfinite(s) else NOTHING),
        **({"yardstick": table["val/yardstick"]} if several else {}),
        **{column: table[column].map(compare.setting) for column in compare.what_differs(table)},
    }
    return DataFrame(shown, dtype="str").fillna(NOTHING)


def provenance_table(found: Findings) -> DataFrame:
    """How many runs were made by which code, on which text, where."""
    keys = ["git_commit", "diff_sha256", "text.source", "text.sha256", "device", "threads", "torch", "host"]
    rows = found.runs[keys].astype("str").fillna(NOTHING)
    rows["git_commit"], rows["text.sha256"] = rows["git_commit"].str[:8], rows["text.sha256"].str[:8]
    rows["diff_sha256"] = rows["diff_sha256"].str[:8]
    counted = rows.groupby(keys, sort=False).size().reset_index(name="runs").astype("str")
    names = {"git_commit": "commit", "diff_sha256": "changes", "text.source": "text", "text.sha256": "text's sha256"}
    return counted.rename(columns=names)[["runs", *(names.get(key, key) for key in keys)]]


def warnings(found: Findings) -> list[str]:
    """Cautions about these runs; the one about best values last."""
    single = [found.labels[row["experiment"]] for row in found.summary.to_dict("records") if row["seeds"] == 1]
    alone = (
        [
            f"One seed is no replicate: there is no interval for {', '.join(single[:6])}"
            + (f" and {len(single) - 6} more." if len(single) > 6 else ".")
        ]
        if single
        else []
    )
    return [*cautions.cautions(found.runs), *alone, cautions.OPTIMISTIC]


def last_samples(found: Findings, most: int = 8) -> list[tuple[str, str, str, str]]:
    """Of the best run of each experiment: its label, what it is, its prompt and its newest sample."""
    newest = found.samples.drop_duplicates("run", keep="last")
    table = found.runs[["run", "experiment", "why"]].merge(newest[["run", "step", "prompt", "text"]], on="run")
    rows = table.drop_duplicates("experiment").head(most).itertuples(index=False, name=None)
    return [
        (found.labels[experiment], f"{run} after {step} steps. The question: {why}", prompt, text)
        for run, experiment, why, step, prompt, text in rows
    ]


def number(value: float) -> str:
    """A loss."""
    return NOTHING if isna(value) else f"{value:.4f}" if math.isfinite(value) else "diverged"


def error(value: float) -> str:
    """Its standard error."""
    return f" ± {value:.4f}" if not isna(value) and math.isfinite(value) else ""


def span(low: float, high: float, sign: str = "") -> str:
    """An interval."""
    return NOTHING if isna(low) or isna(high) else f"{low:{sign}.4f} to {high:{sign}.4f}"


def p_value(p: float) -> str:
    """A p-value to three digits."""
    return NOTHING if isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def whole(value: float) -> str:
    """A count."""
    return NOTHING if isna(value) else f"{value:,.0f}" if math.isfinite(value) else "∞"


def _seeds(count: float) -> str:
    return "one seed" if count == 1 else f"{count:.0f} seeds"


def _counts(row: Mapping[Any, Any]) -> str:
    extra = [f"{row[state]} {state}" for state in ("diverged", "unfinished") if row[state]]
    return ", ".join([str(row["seeds"]), *extra])
