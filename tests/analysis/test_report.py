import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.offline
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from strategies import as_json, oddly

from analysis import load, plots, report
from gptlab import project
from gptlab.tracking.metrics import COLUMNS, COUNTS, METRICS
from gptlab.tracking.run import RECORD, SAMPLES, Run

MakeRun = Callable[..., Run]

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> | `tick` [link](https://example.org)"


def written() -> tuple[str, str]:
    """Both reports as they are on the disk, the HTML without plotly.js."""
    directory = project.runs_directory()
    html = (directory / "report.html").read_text(encoding="utf-8")
    return (directory / "report.md").read_text(encoding="utf-8"), html.replace(plotly.offline.get_plotlyjs(), "")


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def test_both_reports_have_a_row_per_run_best_first_with_what_differs(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worse = make_run("a-worse", changes={"train.learning_rate": 1e-2}, steps=30)
    best = make_run("b-best", val_losses=(11.0, 4.5), samples=["first", "last words"])
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 0
    assert capsys.readouterr().out.splitlines() == ["runs/report.md", "runs/report.html"]
    markdown, html = written()
    assert f"| {best.id} | complete | 10 of 20 | 4.0000 | 4.5000 ± 0.2500 | 2.2500 | 1,600 | 0.0003 |" in markdown
    assert f"| {worse.id} | complete | 20 of 30 | 5.5000 | 6.0000 ± 0.2500 | 3.0000 | 1,600 | 0.01 |" in markdown
    assert "train.learning_rate" in html
    for text in (markdown, html):
        assert text.index(best.id) < text.index(worse.id)
        assert "4.5000 ± 0.2500" in text
        assert "The last words" in text
        assert "The first" not in text
        assert "do not compare" not in text


def test_markdown_shows_the_course_of_each_run(make_run: MakeRun) -> None:
    run = make_run(val_losses=(8.0, 4.0, 1.0))
    report.main([])
    assert f"| {run.id} | 8.0000 | 4.0000 | 1.0000 | █▄▁ |" in written()[0]


def test_html_draws_both_losses_and_fetches_nothing(make_run: MakeRun) -> None:
    make_run(samples=["end"])
    report.main([])
    whole = (project.runs_directory() / "report.html").read_text(encoding="utf-8")
    assert whole.count(plotly.offline.get_plotlyjs()) == 1
    html = written()[1]
    assert html.count("Plotly.newPlot(") == 2
    assert "11.0,8.0,6.0" in html
    assert not [word for word in ("http:", "https:", "src=", "<link", "@import", "url(") if word in html]
    assert '"displayModeBar": false' in html  # plotly's own would offer to send the figure to a server
    assert "prefers-color-scheme: dark" in html


def test_nothing_that_a_text_or_a_model_wrote_is_markup(make_run: MakeRun) -> None:
    make_run("one", why=HOSTILE, source=HOSTILE, samples=[HOSTILE], notes=HOSTILE)
    make_run("two", sha256="ef" * 32)
    report.main([])
    markdown, html = written()
    for page in (html, rendered(markdown)):
        assert "<script>alert" not in page
        assert "<img" not in page
        assert 'href="' not in page
        assert "&lt;img src=x onerror=alert(2)&gt;" in page
        assert page.count("example.org") == 3  # whole in the table, the question and the sample
    assert html.count("</pre>") == 1
    assert rendered(markdown).count("<td") == rendered(markdown).count("<th>") * 2  # a | in a cell adds no cell


def test_a_hostile_run_id_does_not_leave_the_plots_script(make_run: MakeRun) -> None:
    make_run()
    runs = load.runs().assign(run=HOSTILE)
    html = report.to_html(runs, load.metrics(runs), load.samples(runs))
    assert "<script>alert" not in html
    assert r"\u003cscript\u003ealert(1)" in html


@pytest.mark.parametrize("sample", ["``` \n# heading\n<b>", "a\r# heading\x0b\x1b[31m\x00", "a\u2028# heading"])
def test_a_sample_of_any_characters_stays_one_block_of_code(make_run: MakeRun, sample: str) -> None:
    run = make_run()
    (run.directory / SAMPLES).write_text(json.dumps({"step": 20, "prompt": "", "text": sample}) + "\n")
    report.main([])
    markdown, html = written()
    assert "<h1>heading" not in rendered(markdown)
    assert rendered(markdown).count("<pre>") == 1
    assert not [c for c in markdown + html if not c.isprintable() and c != "\n"]


def test_losses_on_different_yardsticks_come_with_a_warning(make_run: MakeRun) -> None:
    make_run("one", yardstick="aaaaaaaa")
    make_run("two", yardstick="bbbbbbbb")
    report.main([])
    for text in written():
        assert "do not compare" in text
        assert "| yardstick |" in text or "<th>yardstick</th>" in text


def test_a_run_without_any_numbers_has_dashes(make_run: MakeRun) -> None:
    run = make_run(val_losses=())
    assert report.main([]) == 0
    markdown, html = written()
    assert f"| {run.id} | complete | 0 of 20 | – | – | – | – |" in markdown
    assert "nan" not in (markdown + html).lower()
    assert "<NA>" not in markdown


def test_without_runs_the_report_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "There are no runs yet; make one with: make exp NAME=tiny"
    assert [Path(line).name for line in lines[1:]] == ["report.md", "report.html"]
    for text in written():
        assert lines[0] in text


NUMBERS = st.floats() | st.sampled_from([1e308, -1e308, 1e-320, math.inf, math.nan])
ROWS = st.fixed_dictionaries(
    {"step": st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 10])},
    optional={
        column: st.integers(0, 2**63 - 1) if column in COUNTS else NUMBERS for column in COLUMNS if column != "step"
    }
    | {"val/yardstick": st.text(max_size=5)},
)


@pytest.fixture
def two_runs(make_run: MakeRun) -> tuple[Run, Run]:
    return make_run("odd"), make_run("whole")


@settings(max_examples=settings.default.max_examples // 4)
@given(rows=st.lists(ROWS, max_size=6), odd=st.lists(oddly({"step": 1, "val/loss": 2.0}), max_size=1))
def test_whatever_numbers_a_run_has_there_is_a_report(
    two_runs: tuple[Run, Run], rows: list[Any], odd: list[Any]
) -> None:
    run, whole = two_runs
    (run.directory / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in [*rows, *odd]))
    runs = load.runs()
    metrics, samples = load.metrics(runs), load.samples(runs)
    assert whole.id in report.to_markdown(runs, metrics, samples)
    for column in report.LOSSES:
        assert plots.loss_curves(metrics, column=column).to_json()


@pytest.mark.parametrize("name", [RECORD, METRICS])
def test_a_damaged_run_is_left_out_with_a_warning_and_the_others_are_reported(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damaged, whole = make_run("damaged"), make_run("whole")
    (damaged.directory / name).write_text("torn\n")
    assert report.main([]) == 0
    (warning,) = caplog.messages
    assert str(damaged.directory / name) in warning
    for text in written():
        assert whole.id in text
        assert damaged.id not in text
