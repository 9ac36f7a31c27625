"""The contents of both reports, and that nothing untrusted in them is interpreted as markup."""

import errno
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.offline
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from strategies import as_json, oddly

from analysis import caveats, load, markdown, page, page_data, palette, plots, report
from analysis.findings import analyze, cost_table, experiment_table
from gptlab import project
from gptlab.tracking.metrics import COLUMNS, COUNTS, METRICS
from gptlab.tracking.run import RECORD, SAMPLES, Run

MakeRun = Callable[..., Run]

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> | `tick` [link](https://example.org)"


def written() -> tuple[str, str]:
    """The Markdown report, and the HTML report without plotly.js, optional line breaks and emphasis."""
    directory = project.runs_directory()
    html = (directory / "report.html").read_text(encoding="utf-8")
    html = re.sub("<wbr>|</?b>", "", html.replace(plotly.offline.get_plotlyjs(), ""))
    html = re.sub("</?code>", "`", html)
    return (directory / "report.md").read_text(encoding="utf-8"), html


def data(html: str) -> dict[str, Any]:
    """The data that the page's scripts read."""
    return json.loads(html.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def three_experiments(make_run: MakeRun) -> list[str]:
    """Make a base, one that is significantly better and one that is not; return their `NAME-HASH8`."""
    ids = []
    for name, change, shift in (
        ("base", {}, 0.0),
        ("better", {"model.tied": True}, -0.5),
        ("other", {"model.bias": False}, 0.02),
    ):
        for seed in range(3):
            noise = 0.04 * (seed - 1) * (1 if name == "base" else -1)
            run = make_run(name, seed, changes=change, val_losses=(11.0, 8.0, 6.0 + shift + seed / 10 + noise))
        ids.append(run.id.rpartition("-s")[0])
    return ids


def test_the_headline_names_the_best_experiment_and_the_significance(make_run: MakeRun) -> None:
    three_experiments(make_run)
    assert report.main([]) == 0
    for text in written():
        assert (
            "Lowest validation loss: better, 5.6000 nats per token after 20 steps (mean of 3 seeds, 95% interval"
            in text
        )
        assert "better − base = −0.5000 ± " in text
        assert "after correction for 2 comparisons, 3 seeds paired: significantly better." in text
        assert "other − base = +0.0200 ± " in text
        assert text.index("significantly better") < text.index("could be chance") < text.index("Lowest validation")
        assert text.index("Lowest validation") < text.index("Caveats") < text.index("seeds needed")
    questions = written()[0].partition("## Each run")[0].splitlines()
    assert any(line.startswith("- better: Does it hold? better − base = −0.5000 ± ") for line in questions)
    assert any(line.startswith("- base: Does it hold? The reference: 6.1000 nats per token") for line in questions)


def test_the_experiment_table_has_differences_and_corrected_p_values(make_run: MakeRun) -> None:
    three_experiments(make_run)
    runs = load.runs()
    findings = analyze(runs, load.metrics(runs), load.samples(runs))
    table = experiment_table(findings)
    assert table["experiment"].tolist() == ["better", "base", "other"]
    assert table["val loss at 20 steps"].tolist() == ["5.6000", "6.1000", "6.1200"]
    assert table["difference"].tolist() == ["-0.5000", "–", "+0.0200"]
    assert table["comparison"].tolist() == ["paired by seed", "reference", "paired by seed"]
    better = table.iloc[0]
    assert float(better["p (Holm)"]) == pytest.approx(2 * float(better["p"]), abs=2e-3)
    costs = cost_table(findings)
    assert costs["experiment"].tolist() == ["better", "base", "other"]
    assert costs["steps to loss 6.240"].tolist()[0] == "17"
    assert any(column.endswith("FLOPs") for column in costs.columns)


def long_and_short(make_run: MakeRun) -> tuple[list[Run], Run]:
    """Six runs of 300 steps, of two experiments, and one of 20 steps with a lower loss."""
    losses = [9.0 - step / 100 for step in range(0, 310, 10)]
    long = [
        make_run(name, seed, changes=changes, val_losses=[loss + shift for loss in losses])
        for name, changes, shift in (("tiny", {}, 0.0), ("tied", {"model.tied": True}, 0.5))
        for seed in range(3)
    ]
    return long, make_run("tiny", 3, val_losses=(9.0, 1.0, 1.0))


def test_a_short_run_does_not_move_the_comparison_and_is_named(make_run: MakeRun) -> None:
    _, short = long_and_short(make_run)
    report.main([])
    for text in written():
        assert "Lowest validation loss: tiny, 6.0000 nats per token after 300 steps (mean of 3 seeds, 95% inter" in text
        assert "Left out of the comparison at 300 steps, because they have no validation loss at exactly that" in text
        assert f"{short.id} (at step 20)." in text
        assert "gptlab resume RUN --steps 300" in text
        assert "val loss at 300 steps" in text
    assert "| tiny | 4, 1 unfinished | 6.0000 |" in written()[0]


def test_the_step_of_the_comparison_can_be_chosen(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    long_and_short(make_run)
    assert report.main(["--at", "20"]) == 0
    assert "Lowest validation loss: tiny, 6.8500 nats per token after 20 steps (mean of 4 seeds" in written()[0]
    capsys.readouterr()
    for step in ("25", "-20", "x", "", "9" * 5000):
        assert report.main(["--at", step]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: --at is '{step}', but no run was validated at that step; measured steps: 0, 10, "
        )
        assert error.endswith(", 100, …, 300\n")


def test_a_short_experiment_is_named_as_the_limit_of_the_comparison(make_run: MakeRun) -> None:
    make_run("long", val_losses=(11.0, 8.0, 6.0))
    make_run("short", val_losses=(11.0, 7.0))
    report.main([])
    for text in written():
        assert "The comparison is at 10 steps because of short; others were measured up to step 20, where " in text
        assert "make report AT=20" in text


def test_interpolated_values_are_marked(make_run: MakeRun) -> None:
    make_run("small", val_losses=(11.0, 9.0, 7.0, 6.0))
    make_run("large", val_losses=(11.0, 8.0, 6.0, 5.0), changes={"model.n_embd": 16})
    runs = load.runs()
    table = cost_table(analyze(runs, load.metrics(runs), load.samples(runs))).set_index("experiment")
    (flops,) = [column for column in table if column.endswith("FLOPs")]
    assert table.loc["small", flops] == "6.0000"
    assert table.loc["large", flops].startswith("≈ ")
    assert not table["val loss at 6 s"].str.contains("≈").any()
    report.main([])
    for text in written():
        assert "≈ marks a mean with values that are interpolated between two measurements" in text


def test_values_at_equal_seconds_are_next_to_cpu_seconds_and_a_caution(make_run: MakeRun) -> None:
    make_run("idle", cpu_share=2.0)
    make_run("busy", cpu_share=1.0, changes={"model.tied": True})
    report.main([])
    markdown_, html = written()
    for text in (markdown_, html):
        assert "CPU seconds per second of training from 1.00 (busy-" in text
        assert "val loss at 4 s of CPU time" in text
        assert "CPU time" in text
    caution = "Seconds of training are not like with like"
    assert markdown_.count(caution) == 2, "in the caveats and below the values"
    assert html.count(caution) == 3, "also below the curves"


def test_losses_with_other_yardsticks_are_neither_best_nor_reached(make_run: MakeRun) -> None:
    make_run("one", val_losses=(11.0, 8.0, 6.0), yardstick="aaaaaaaa")
    make_run("two", val_losses=(11.0, 5.0, 3.0), yardstick="bbbbbbbb", changes={"model.tied": True})
    report.main([])
    for text in written():
        assert "No lowest validation loss: the experiments were validated on different sets of windows" in text
    runs = load.runs()
    table = cost_table(analyze(runs, load.metrics(runs), load.samples(runs))).set_index("experiment")
    assert table["steps to loss 6.000"].to_dict() == {"one": "20", "two": "–"}


def test_a_run_of_mixed_attempts_is_named_in_headline_tables_and_provenance(
    make_run: MakeRun, add_attempt: Callable[..., None]
) -> None:
    make_run("tiny", 0)
    add_attempt(make_run("tiny", 1), git_commit="deadbeef" * 5, host="elsewhere")
    report.main([])
    markdown_, html = written()
    for text in (markdown_, html):
        assert "mean of 2 seeds, 1 of them with attempts that differ in code or environment" in text
        assert "consist of attempts that differ in code or environment" in text
        assert "c0ffee00, then deadbeef" in text
        assert "somewhere, then elsewhere" in text
    assert "| tiny | 2, 1 mixed |" in markdown_


def test_copies_are_listed_and_left_out(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    shutil.copytree(run.directory, run.directory.with_name("copy"))
    assert report.main([]) == 0
    (warning,) = caplog.messages
    assert f"{run.directory.with_name('copy')} is a copy of {run.id}" in warning
    for text in written():
        assert f"another name than the run: copy (of {run.id})." in text
        assert "1 run in " in text


def test_the_report_can_be_written_elsewhere(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    assert report.main(["--out", str(tmp_path / "new" / "folder")]) == 0
    assert run.id in (tmp_path / "new" / "folder" / "report.md").read_text()
    assert not list(project.runs_directory().glob("report.*"))
    capsys.readouterr()

    def refuse(path: Path, content: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(report, "write_durably", refuse)
    assert report.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: the report cannot be written to {project.runs_directory()}: Read-only file system; write it elsewhere "
        "with: gptlab report --out DIR\n"
    )


def test_a_cache_that_cannot_be_written_is_one_warning(
    make_run: MakeRun, weights: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(checkpoints={20: weights})
    monkeypatch.setenv("GPTLAB_CACHE", "/proc/nowhere")
    assert report.main([]) == 0
    (warning,) = caplog.messages
    assert "cannot be written" in warning
    assert run.id in written()[0]


def test_curves_of_seeds_that_were_left_out_are_marked(make_run: MakeRun) -> None:
    long, short = long_and_short(make_run)
    report.main([])
    compared = {curve["run"]: curve["compared"] for curve in data(written()[1])["runs"]}
    assert compared == {**{run.id: True for run in long}, short.id: False}


def test_both_reports_list_the_runs_best_first_with_the_settings_that_differ(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worse = make_run("a-worse", changes={"train.learning_rate": 1e-2}, steps=30)
    best = make_run("b-best", val_losses=(11.0, 4.5), samples=["first", "last words"])
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 0
    assert capsys.readouterr().out.splitlines() == ["runs/report.md", "runs/report.html"]
    markdown_, html = written()
    row = "| complete | 10 of 20 | 4.0000 | 4.5000 ± 0.2500 | 2.2500 | – | 0.0003 |"
    assert f"| {best.id} {row}" in markdown_
    assert f"| {best.id} | 1,600 | – | 2 s | – |" in markdown_
    row = "| complete | 20 of 30 | 5.5000 | 6.0000 ± 0.2500 | 3.0000 | – | 0.01 |"
    assert f"| {worse.id} {row}" in markdown_
    for text in (markdown_, html):
        assert "train.learning" in text
        assert text.index(best.id) < text.index(worse.id)
        assert "last words" in text
        assert "are not comparable" not in text
    assert "<pre>The first</pre>" not in html


def test_only_selected_runs_are_reported(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run("one", tags=["a"]), make_run("two", tags=["b"])
    for arguments in (["--name", "on*"], ["--tag", "a"], ["--name", "one", "--tag", "a"]):
        assert report.main(arguments) == 0
        for text in written():
            assert one.id in text
            assert two.id not in text
    capsys.readouterr()
    assert report.main(["--name", "one", "--tag", "b"]) == 2
    assert capsys.readouterr().err == "error: there is no run with name 'one' and tag 'b'; `gptlab runs` lists them\n"


def test_markdown_shows_a_sparkline_of_each_run(make_run: MakeRun) -> None:
    run = make_run(val_losses=(8.0, 4.0, 1.0))
    report.main([])
    assert f"| {run.id} | 8.0000 | 4.0000 | 1.0000 | █▄▁ |" in written()[0]


def test_the_page_is_self_contained(make_run: MakeRun) -> None:
    make_run(samples=["end"])
    report.main([])
    whole = (project.runs_directory() / "report.html").read_text(encoding="utf-8")
    assert whole.count(plotly.offline.get_plotlyjs()) == 1
    html = written()[1]
    assert '"val":[11.0,8.0,6.0]' in html
    assert not [word for word in ("http:", "https:", "src=", "<link", "@import", "url(") if word in html]
    assert "default-src 'none'" in html
    assert "displayModeBar: false" in html  # plotly's mode bar can send the figure to a server
    assert "prefers-color-scheme: dark" in html


def test_page_and_figures_share_one_palette(make_run: MakeRun) -> None:
    three_experiments(make_run)
    report.main([])
    page_data_ = data(written()[1])
    assert page_data_["palette"] == {"colors": list(palette.COLORS), "dashes": list(palette.DASHES)}
    markers = [trace["marker"]["color"] for trace in page_data_["figures"]["estimates"]["data"]]
    assert markers == list(palette.COLORS[:3])
    package = Path(page.__file__).parent
    for path in [*package.rglob("*.js"), *package.rglob("*.j2"), *set(package.glob("*.py")) - {Path(palette.__file__)}]:
        colors = set(re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")))
        assert colors <= {plots.GRAY}, path


def test_many_differing_settings_share_one_column(make_run: MakeRun) -> None:
    make_run("base")
    changes = {"model.tied": True, "model.bias": False, "train.learning_rate": 0.5, "train.grad_clip": 2.0}
    make_run("other", changes=changes | {"train.betas": [0.8, 0.9]})
    report.main([])
    markdown_, html = written()
    assert "changes from the reference" in html
    row = r"model.bias=False, model.tied=True, train.learning\_rate=0.5, train.betas=\[0.8, 0.9\], train.grad\_clip=2"
    assert f"{row} |" in markdown_


def test_untrusted_text_is_not_interpreted_as_markup(make_run: MakeRun) -> None:
    make_run("one", why=HOSTILE, source=HOSTILE, samples=[HOSTILE], notes=HOSTILE, host=HOSTILE)
    make_run("two", sha256="ef" * 32)
    report.main([])
    markdown_, html = written()
    for text in (html, rendered(markdown_)):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert 'href="h' not in text
        assert "&lt;img src=x onerror=alert(2)&gt;" in text
    assert html.count("</pre>") == html.count("<pre>") == 2, "next to the other question, too"
    table = rendered(markdown_).partition("<h2>Each run</h2>")[2].partition("</table>")[0]
    assert table.count("<td") == table.count("<th>") * 2  # a | in a cell adds no cell


def test_a_hostile_name_cannot_break_out_of_the_pages_json(make_run: MakeRun) -> None:
    make_run()
    runs = load.runs().assign(run=HOSTILE, name=HOSTILE)
    metrics = load.metrics(runs)
    html = page.to_html(analyze(runs, metrics, load.samples(runs)), load.checkpoints(runs), HOSTILE)
    assert "<script>alert" not in html
    assert r"\u003cscript\u003ealert(1)" in html


@pytest.mark.parametrize("sample", ["``` \n# heading\n<b>", "a\r# heading\x0b\x1b[31m\x00", "a\u2028# heading"])
def test_a_sample_with_any_characters_is_one_code_block(make_run: MakeRun, sample: str) -> None:
    run = make_run()
    (run.directory / SAMPLES).write_text(json.dumps({"step": 20, "prompt": "", "text": sample}) + "\n")
    report.main([])
    markdown_, html = written()
    assert "<h1>heading" not in rendered(markdown_)
    assert rendered(markdown_).count("<pre>") == 1
    assert not [c for c in markdown_ + html if not c.isprintable() and c != "\n"]


def test_different_yardsticks_are_reported_as_not_comparable(make_run: MakeRun) -> None:
    make_run("one", yardstick="aaaaaaaa")
    make_run("two", yardstick="bbbbbbbb")
    report.main([])
    for text in written():
        assert "are not comparable" in text
        assert "not compared" in text
        assert "yardstick" in text


def test_best_values_are_called_optimistic(make_run: MakeRun) -> None:
    make_run()
    report.main([])
    for text in written():
        assert "best val (optimistic)" in text
        assert caveats.OPTIMISTIC in text.replace("\\`", "`")


def test_missing_numbers_are_dashes(make_run: MakeRun) -> None:
    run = make_run(val_losses=())
    assert report.main([]) == 0
    markdown_, html = written()
    assert f"| {run.id} | complete | 0 of 20 | – | – | – | – |" in markdown_
    assert f"| {run.id} | – | – | – | – |" in markdown_
    words = markdown_ + html.partition("<script")[0]
    assert "nan" not in words.lower().replace("provenance", "")
    assert "<NA>" not in words


def test_without_runs_the_report_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "There are no runs yet; make one with: make exp NAME=tiny"
    assert [Path(line).name for line in lines[1:]] == ["report.md", "report.html"]
    for text in written():
        assert lines[0] in text


def test_thinning_keeps_validations_and_last_rows(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(val_losses=())
    rows = [{"step": step, "train/loss": float(step)} | ({"val/loss": 5.0} if step == 7 else {}) for step in range(12)]
    (run.directory / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in rows))
    monkeypatch.setattr(page_data, "MAX_ROWS", 3)
    runs = load.runs()
    drawn, stride = page_data.run_curves(analyze(runs, load.metrics(runs), load.samples(runs)))
    assert (stride, drawn[0]["step"]) == (4, [0, 4, 7, 8, 11])
    assert drawn[0]["train"] == [0.0, 2.5, 6.0, 8.0, 10.0], "means over all rows since the last one"
    report.main([])
    assert "the mean of 4 rows" in written()[1]


def test_weight_tables_have_a_row_per_matrix_and_a_column_per_step(make_run: MakeRun, weights: Any) -> None:
    run = make_run(checkpoints={10: weights, 20: weights})
    (table,) = page_data.weight_tables(load.checkpoints(), {run.id: "mine"})
    assert (table["run"], table["steps"]) == ("mine", [10, 20])
    assert table["tensors"] == ["blocks.0.attention.projection", "blocks.1.attention.projection"]
    assert table["values"]["rms"] == [[1, 1], [2, 2]]
    assert table["values"]["update"] == [[None, 0], [None, 0]]
    (heat,) = plots.heat_map(load.checkpoints(), "rms").data
    assert [list(row) for row in heat.z] == [[1, 1], [2, 2]]


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


@settings(max_examples=settings.default.max_examples // 20)
@given(rows=st.lists(ROWS, max_size=6), odd=st.lists(oddly({"step": 1, "val/loss": 2.0}), max_size=1))
def test_the_report_is_written_for_any_numbers(two_runs: tuple[Run, Run], rows: list[Any], odd: list[Any]) -> None:
    run, whole = two_runs
    (run.directory / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in [*rows, *odd]))
    runs = load.runs()
    metrics, samples = load.metrics(runs), load.samples(runs)
    found = analyze(runs, metrics, samples)
    assert whole.id in markdown.to_markdown(found, "")
    assert whole.id in page.to_html(found, load.checkpoints(runs), "")
    for column in markdown.LOSSES:
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
