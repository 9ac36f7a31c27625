"""The list of runs and the curve of one, in a terminal."""

import dataclasses
import math
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from gptlab.commands import list_runs
from gptlab.terminal import sparkline
from gptlab.terminal.chart import Curve, chart
from gptlab.terminal.text import format_age

FACTS = {"run": "tiny-28bba255-s0", "status": "complete", "step": 100, "steps": 100, "val_loss": 5.25}
SUMMARY = {**FACTS, "disk_bytes": 3 * 2**20}


def line(**changes: object) -> list_runs.RunSummary:
    created = datetime.now(UTC) - timedelta(hours=5, minutes=1)
    return list_runs.RunSummary({**SUMMARY, **changes}, [9.0, 7.0, 5.0], 83.4, created)


def test_a_run_is_a_line_with_status_loss_curve_age_and_training_time(capfd: pytest.CaptureFixture[str]) -> None:
    list_runs.render([line(), line(run="x" * 90, status="running", step=7, val_loss=None)])
    heading, first, second = capfd.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "run"
    assert " ".join(first.split()) == "tiny-28bba255-s0 complete 100 5.2500 █▅▁ 5 h 1 min 23 s 3 MiB"
    assert second.split()[:6] == ["x" * 90, "running", "7", "of", "100", "–"]


def test_bits_per_byte_are_shown_where_tokenizers_differ(capfd: pytest.CaptureFixture[str]) -> None:
    words = dataclasses.replace(line(), tokenizer="a", bits_per_byte=1.5)
    letters = dataclasses.replace(line(val_loss=2.0), tokenizer="b", bits_per_byte=2.75)
    list_runs.render([words, letters])
    heading, first, second = capfd.readouterr().out.splitlines()
    assert "bits/byte" in heading
    assert first.split()[3:5] == ["5.2500", "1.5000"]
    assert second.split()[3:5] == ["2.0000", "2.7500"]
    list_runs.render([words, words])
    assert "bits/byte" not in capfd.readouterr().out


def test_a_copy_of_a_run_is_listed_as_what_it_is(micro, train, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(micro, steps=1).run
    shutil.copytree(run.directory, run.directory.with_name("backup"))
    summaries = list_runs.list_runs()
    assert [summary.facts.get("copy") for summary in summaries] == ["backup", None]
    capfd.readouterr()
    list_runs.render(summaries)
    _heading, copy, original = capfd.readouterr().out.splitlines()
    assert copy.startswith(f"backup, a copy of {run.id}  complete")
    assert original.startswith(f"{run.id}  ")


def test_absurd_numbers_do_not_break_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    odd = list_runs.RunSummary({**SUMMARY, "val_loss": 1e308}, [1e308, -1e308], 1e308, datetime.now(UTC))
    list_runs.render([odd, list_runs.RunSummary({**SUMMARY, "val_loss": math.inf}, [], 0.0, datetime.now(UTC))])
    first, second = capfd.readouterr().out.splitlines()[1:]
    assert first.split() == ["tiny-28bba255-s0", "complete", "100", "1e+308", "█▁", "0", "min", "–", "3", "MiB"]
    assert second.split()[3] == "inf"


def test_no_line_is_longer_than_a_narrow_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    list_runs.render([line()])
    assert all(len(text) <= 80 for text in capfd.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("minutes", "words"), [(-5, "0 min"), (0.5, "0 min"), (59, "59 min"), (60, "1 h"), (2879, "47 h"), (2880, "2 d")]
)
def test_ages_have_a_readable_unit(minutes: float, words: str) -> None:
    assert format_age(timedelta(minutes=minutes)) == words


def test_a_sparkline_scales_from_lowest_to_highest_and_marks_non_finite_values() -> None:
    assert sparkline.bars([8, 4, 1]) == "█▄▁"
    assert sparkline.bars([1, 1, math.inf, math.nan]) == "▁▁××"
    assert sparkline.bars([1e308, -1e308]) == "█▁"
    assert sparkline.bars([5], low=0, high=10) == sparkline.BARS[4]
    assert sparkline.bars([]) == ""


def test_more_values_than_fit_are_averaged() -> None:
    assert sparkline.resample([1, 3, 5, 7], 2) == [2, 6]
    assert sparkline.resample([1, 3], 5) == [1, 3]
    assert len(sparkline.resample(range(1000), 16)) == 16
    assert math.isnan(sparkline.resample([1, math.inf, 5, 7], 2)[0])


def test_a_chart_has_its_highest_value_on_top_and_its_last_step_on_the_right() -> None:
    lines = chart([Curve("·", [0, 50, 100], [10.0, 7.5, 5.0]), Curve("●", [100], [5.0])], width=30, height=5)
    assert lines[0].startswith("10 ┤·")
    assert lines[4].startswith(" 5 ┤")
    assert lines[4].endswith("●")
    assert len(lines[4]) == len(lines[5]) == 30
    assert lines[2].index("·") == pytest.approx(17, abs=1)
    assert lines[6].split() == ["0", "100"]


@pytest.mark.parametrize("ys", [[], [5.0], [5.0, 5.0], [math.nan, math.inf], [1e308, -1e308], [5.0, math.inf]])
def test_any_numbers_give_a_chart_that_fits_or_none(ys: list[float]) -> None:
    lines = chart([Curve("·", [0] * len(ys), ys)], width=40)
    assert not lines or all(len(text) <= 40 for text in lines)


def test_values_that_cannot_be_drawn_give_no_chart() -> None:
    assert chart([Curve("·", [1], [5.0])], 40) == []
    assert chart([Curve("·", [1, 2], [math.nan, math.inf])], 40) == []
