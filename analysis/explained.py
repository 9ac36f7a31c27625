"""The report's section on what the losses are made of, from what `gptlab eval RUN --explain` stored."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame, isna
from plotly.graph_objects import Figure

from analysis import plots
from analysis.findings import Findings
from analysis.formatting import MISSING, count, signed
from gptlab.errors import BadInputError
from gptlab.explanation import rows, sentences
from gptlab.explanation.rows import Row
from gptlab.explanation.stored import Explanation, Stored

logger = logging.getLogger(__name__)

MAX_RUNS = 6
"""Runs that are displayed: the best explained run of each of the best experiments."""

OTHER_WINDOWS = (
    "The curves are of runs on different windows, as with another text or sequence length; the table of differences "
    "has only runs on the same ones."
)
NOTE = f"{sentences.NOTE} Make this for other runs with `gptlab eval RUN --explain`."


@dataclass(frozen=True)
class Section:
    """What the section displays."""

    best: str
    """The best run that has an explanation."""
    sentences: list[str]
    """About that run."""
    note: str
    """How to read the section."""
    figures: dict[str, Figure]
    """By the id of their element."""
    by_position: DataFrame
    """The loss in each bin (row) of each run (column), as text, in the unit of the report."""
    by_frequency: DataFrame
    memorization: DataFrame
    differences: DataFrame
    """One row per run that is compared with the reference."""


def section(findings: Findings, explained: Mapping[str, Stored]) -> Section | None:
    """Return the section; None if no run has an explanation.

    Args:
        findings: The report's contents.
        explained: The explanation of each run that has one, by run id.
    """
    chosen = _chosen(findings, explained)
    if not chosen:
        return None
    rank = {experiment: number for number, experiment in enumerate(findings.summary["experiment"])}
    experiments, seeds = _experiments(findings), _seeds(findings)
    labels = {run: f"{findings.labels[experiments[run]]}, seed {seeds[run]}" for run in chosen}
    colors = {labels[run]: rank[experiments[run]] for run in chosen}
    position = _stacked(chosen, labels, rows.by_position)
    frequency = _stacked(chosen, labels, rows.by_frequency)
    best = next(iter(chosen))
    value = "bpb" if findings.measure.column == "val/bpb" else "loss"
    figures = {"loss-by-context": plots.loss_by_bin(position, "context", value, colors)}
    figures["loss-by-count"] = plots.loss_by_bin(frequency, "count", value, colors)
    return Section(
        best=labels[best],
        sentences=sentences.sentences(chosen[best]),
        note=NOTE if len({explained[run].yardstick for run in chosen}) == 1 else f"{OTHER_WINDOWS} {NOTE}",
        figures=figures,
        by_position=_side_by_side(position, "context", value),
        by_frequency=_side_by_side(frequency, "count", value),
        memorization=_memorization(chosen, labels),
        differences=_differences(findings, explained, chosen, labels),
    )


def _chosen(findings: Findings, explained: Mapping[str, Stored]) -> dict[str, Explanation]:
    """The best explained run of each experiment."""
    runs = findings.runs[findings.runs["run"].isin(list(explained))].drop_duplicates("experiment").head(MAX_RUNS)
    return {run: explained[run].explanation for run in runs["run"]}


def _experiments(findings: Findings) -> dict[str, str]:
    return dict(findings.runs[["run", "experiment"]].itertuples(index=False, name=None))


def _seeds(findings: Findings) -> dict[str, int]:
    return dict(findings.runs[["run", "seed"]].itertuples(index=False, name=None))


def _stacked(chosen: Mapping[str, Explanation], labels: Mapping[str, str], describe: Any) -> DataFrame:
    """The rows of all runs, with their labels as `run`."""
    return DataFrame([{"run": labels[run], **row} for run, found in chosen.items() for row in describe(found)])


def _side_by_side(table: DataFrame, bins: str, value: str) -> DataFrame:
    """The loss of each bin (row) and run (column) as text."""
    order = table.drop_duplicates(bins).sort_values(["first", "last"])[bins].tolist()
    texts = table.assign(text=[_interval(row, value) for row in table.to_dict("records")])
    wide = texts.pivot(index=bins, columns="run", values="text").reindex(order)[table["run"].unique().tolist()]
    return wide.fillna(MISSING).rename_axis(columns=None).reset_index().astype("str")


def _memorization(chosen: Mapping[str, Explanation], labels: Mapping[str, str]) -> DataFrame:
    """A row for each run and prompt length, with the shares of training and of held-out passages."""
    table = []
    for run, found in chosen.items():
        shares = rows.memorization(found)
        for trained, held_out in zip(shares[::2], shares[1::2], strict=True):
            table.append(
                {
                    "run": labels[run],
                    "prompt": count(trained["prompt"]),
                    "continuation": count(trained["continuation"]),
                    "training passages": _share(trained),
                    "of": count(trained["passages"]),
                    "held-out passages": _share(held_out),
                    "of ": count(held_out["passages"]),
                }
            )
    return DataFrame(table, dtype="str")


def _differences(
    findings: Findings, explained: Mapping[str, Stored], chosen: Mapping[str, Explanation], labels: Mapping[str, str]
) -> DataFrame:
    """A row for each run of another experiment than the reference, on the same windows as one of the reference's."""
    seeds, experiments = _seeds(findings), _experiments(findings)
    references = [run for run in experiments if experiments[run] == findings.reference and run in explained]
    table = []
    for run, found in chosen.items():
        same = [one for one in references if explained[one].yardstick == explained[run].yardstick]
        if run in references or not same:
            continue
        paired = next((one for one in same if seeds[one] == seeds[run]), same[0])
        try:
            differences = rows.differences(explained[paired].explanation, found)
        except BadInputError as error:  # a file of an untrusted run has the name of other windows
            logger.warning("the explanations of %s and %s are not compared: %s", paired, run, error)
            continue
        table.append({"run": labels[run], **_difference_cells(differences)})
    return DataFrame(table, dtype="str")


def _difference_cells(differences: list[Row]) -> dict[str, str]:
    """The first and last position, what context is worth, and the longest prompt, with their intervals."""
    by_kind = {kind: [row for row in differences if row["kind"] == kind] for kind in ("position", "memorization")}
    first, last = by_kind["position"][0], by_kind["position"][-1]
    (context,) = (row for row in differences if row["kind"] == "context")
    names = (f"loss with {first['bin']} token", f"loss with {last['bin']} tokens")
    cells = dict(zip(names, map(_signed, (first, last)), strict=True))
    cells["worth of context"] = _signed(context)
    trained = [row for row in by_kind["memorization"] if row["bin"].endswith("trained")]
    cells["training passages verbatim"] = _points(trained[-1]) if trained else MISSING
    cells["windows"] = count(context["n"])
    return {name: text.replace("-", "−") for name, text in cells.items()}


def _interval(row: Mapping[Any, Any], name: str) -> str:
    if isna(row[name]):
        return MISSING
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return f"{row[name]:.3f}" + ("" if isna(half) else f" ± {half:.3f}")


def _signed(row: Row) -> str:
    half = (row["difference_high"] - row["difference_low"]) / 2
    return signed(row["difference"]) + ("" if isna(half) else f" ± {half:.4f}")


def _points(row: Row) -> str:
    """A difference of shares with its interval, which is not symmetric."""
    mean, low, high = (100 * row[key] for key in ("difference", "difference_low", "difference_high"))
    return f"{mean:+.1f}% ({low:+.1f} to {high:+.1f})"


def _share(row: Row) -> str:
    if isna(row["share"]):
        return MISSING
    return f"{100 * row['share']:.1f}% ({100 * row['share_low']:.1f} to {100 * row['share_high']:.1f})"
