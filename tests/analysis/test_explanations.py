"""Stored explanations as tables, paired differences of two runs, and the section of the report."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from explained import explanation, store
from pandas import DataFrame

from analysis import columns, explain, explained, load, markdown, page, plots
from analysis.findings import analyze
from gptlab.errors import BadInputError
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]


def report(runs: DataFrame) -> tuple[str, str]:
    """Both reports."""
    findings = analyze(runs, load.metrics(runs), load.samples(runs))
    section = explained.section(findings, explain.explained_runs(findings.runs))
    return markdown.to_markdown(findings, "", section), page.to_html(findings, load.checkpoints(runs), "", section)


def test_tables_have_a_row_for_each_bin_checkpoint_and_run(make_run: MakeRun) -> None:
    first, second = make_run("base"), make_run("better", changes={"model.tied": True})
    for step in (10, 20):
        store(first, explanation(lower=step / 100), step)
    store(second, explanation())
    position = explain.by_position()
    assert position.dtypes.astype(str).to_dict() == columns.BY_POSITION
    assert position.groupby(["run", "step"]).size().tolist() == [4, 4, 4]
    assert position["tokens"].head(4).tolist() == [80, 80, 160, 320]
    assert (position["windows"].unique(), position["blocks"].unique()) == (80, 30)
    frequency = explain.by_frequency(load.runs(name="better"))
    assert frequency["count"].tolist() == ["0", "1–2", "3–8", "9–32"]
    assert frequency["share_of_tokens"].tolist() == pytest.approx([0, 2 / 16, 6 / 16, 8 / 16])
    assert frequency["share_of_loss"].sum() == pytest.approx(1)
    assert frequency["loss"].tolist()[1:] == pytest.approx([4, 4, 4])
    worth = explain.context()
    assert worth["gain"].tolist()[2] == pytest.approx(position["loss"].iloc[8] - position["loss"].iloc[11], abs=1e-12)
    shares = explain.memorization()
    assert shares[["part", "share"]].head(2).to_numpy().tolist() == [["trained", 0.5], ["held out", 0.0]]
    for table, dtypes in ((worth, columns.CONTEXT), (shares, columns.MEMORIZATION), (frequency, columns.BY_FREQUENCY)):
        assert table.dtypes.astype(str).to_dict() == dtypes
    assert explain.memorization(load.runs(name="nothing")).dtypes.astype(str).to_dict() == columns.MEMORIZATION


def test_differences_are_of_the_newest_checkpoints_on_shared_windows(make_run: MakeRun) -> None:
    first, second = make_run("base"), make_run("better", changes={"model.tied": True})
    store(first, explanation())
    store(second, explanation(lower=9), 10)
    store(second, explanation(lower=0.5), 20)
    store(second, explanation(lower=7), 20, "ffffffff")
    found = explain.differences(first.id, second.id)
    assert found.dtypes.astype(str).to_dict() == columns.DIFFERENCES
    rare = found[found["kind"] == "frequency"].dropna(subset="difference")
    assert rare["difference"].tolist() == pytest.approx([-0.5] * 3)
    assert (rare["difference_high"] - rare["difference_low"]).max() < 1e-9
    alone = make_run("alone", changes={"model.bias": False})
    with pytest.raises(BadInputError, match=f"make one with: gptlab eval {alone.id} {first.id} --explain"):
        explain.differences(alone.id, first.id)


def test_the_report_has_the_section_only_if_a_run_is_explained(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_run("base"), make_run("better", changes={"model.tied": True}, val_losses=(11.0, 7.0, 5.0))
    runs = load.runs()
    for text in report(runs):
        assert "What the loss is made of" not in text
    store(first, explanation())
    damaged = store(second, explanation(lower=0.25))
    as_markdown, as_html = report(runs)
    assert "better, seed 0, the best run that was explained:" in as_markdown
    assert "With 5–8 tokens of context the loss is" in as_markdown
    assert "| 3–8 | 3.750 ± 0.000 | 4.000 ± 0.000 |" in as_markdown
    assert "| better, seed 0 | −0.1250 ± 0.0000 | −0.0312 ± 0.0000 |" in as_markdown
    assert "| better, seed 0 | 16 | 4 | 66.7% (20.8 to 93.9) | 3 | 0.0% (0.0 to 56.1) | 3 |" in as_markdown
    for mark in ('href="#explained-section"', 'id="loss-by-context"', '"loss-by-count":', "Differences from base"):
        assert mark in as_html
    damaged.write_bytes(damaged.read_bytes()[:-1])
    as_markdown, _ = report(runs)
    assert "base, seed 0, the best run that was explained:" in as_markdown
    assert damaged.name in caplog.text


def test_runs_on_other_windows_are_drawn_but_not_compared(make_run: MakeRun) -> None:
    first, second = make_run("base"), make_run("better", changes={"model.tied": True})
    store(first, explanation())
    store(second, explanation(lower=0.25), yardstick="ffffffff")
    as_markdown, as_html = report(load.runs())
    assert explained.OTHER_WINDOWS in as_markdown
    assert "### Differences" not in as_markdown
    assert "Differences from base" not in as_html


def test_a_forged_explanation_does_not_stop_the_report(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    """The names of the files say that the windows are the same, and the facts that the counts are; neither is true."""
    base, windows = make_run("base"), make_run("windows", changes={"model.tied": True})
    counts = make_run("counts", changes={"model.bias": False})
    known = explanation()
    store(base, known)
    store(windows, explanation(blocks=50))
    fewer = {name: getattr(known, name)[:, :3] for name in ("frequency_loss", "frequency_tokens", "frequency_bytes")}
    store(counts, replace(known, facts=known.facts.model_copy(update={"most": 8}), **fewer))
    as_markdown, _ = report(load.runs())
    assert f"explanations of {base.id} and {windows.id} are not compared: the windows are not the same" in caplog.text
    assert "| counts, seed 0 | +0.0000 ± 0.0000 |" in as_markdown.partition("### Differences")[2]


def test_losses_that_are_not_finite_are_said_to_be_and_drawn_as_gaps(make_run: MakeRun) -> None:
    first, second = make_run("base"), make_run("better", changes={"model.tied": True})
    for run, value in ((first, np.nan), (second, np.inf)):
        losses = {name: np.full((40, 4), value) for name in ("position_loss", "frequency_loss")}
        store(run, replace(explanation(), **losses))
    as_markdown, as_html = report(load.runs())
    assert "The losses are not finite" in as_markdown
    assert "NaN" not in as_html.partition('id="data">')[2].partition("</script>")[0]
    assert explain.differences(first.id, second.id)["difference"].notna().sum() == 4, "those of memorization"


def test_a_figure_has_a_curve_with_intervals_for_each_run(make_run: MakeRun) -> None:
    store(make_run("base"), explanation())
    figure = plots.loss_by_bin(explain.by_frequency(), "count")
    (curve,) = figure.data
    assert list(curve.x) == ["1–2", "3–8", "9–32"], "a bin without tokens has no loss"
    assert len(curve.error_y.array) == 3
    with pytest.raises(BadInputError, match="bins"):
        plots.loss_by_bin(explain.by_frequency(), "token")
