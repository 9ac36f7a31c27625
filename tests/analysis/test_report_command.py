"""The options of the report: its reference, its table, its figures, opening it, and its progress."""

import os
import re
import sys
import webbrowser
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pandas import DataFrame
from PIL import Image

from analysis import desktop, figures, load, palette, progress, reference, report, tables
from analysis.findings import Findings, analyze
from gptlab import cli, project
from gptlab.sequential import design
from gptlab.tracking import decisions
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]


@pytest.fixture
def compared(make_run: MakeRun) -> dict[str, str]:
    """Two seeds of each of three experiments; returns their `NAME-HASH8` by name."""
    ids = {}
    for name, changes, shift in (
        ("base_1", {}, 0.0),
        ("tied", {"model.tied": True}, -0.5),
        ("bias", {"model.bias": False}, 0.02),
    ):
        for seed in range(2):
            losses = (11.0, 8.0 + shift, 6.0 + shift + seed / 10 + seed * shift / 100)
            run = make_run(name, seed, changes=changes, val_losses=losses)
        ids[name] = run.id.rpartition("-s")[0]
    return ids


def findings() -> Findings:
    runs = load.runs()
    return analyze(runs, load.metrics(runs), load.samples(runs))


def test_the_command_the_module_and_make_have_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(report, "write", seen.append)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    words = ["--name", "n", "--tag", "t", "--at", "5", "--against", "a", "--out", "o", "--figures", "f", "--open"]
    for given_ in (words, ["--table", "latex"], []):
        monkeypatch.setattr(sys, "argv", ["gptlab", "report", *given_])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, report.main(given_)) == (0, 0)
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1", "its threads take CPU time while they wait"
    assert seen[::2] == seen[1::2]
    assert seen[0] == report.Options("n", "t", "5", "a", "o", None, "f", open_page=True)


def test_the_report_shows_stored_decisions_and_skips_a_damaged_one(
    compared: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    decision = decisions.new_decision(compared["base_1"], compared["tied"], 20, design(0.02))
    for difference in (-0.5, -0.51, -0.49):
        decision = decision.with_pair(6.0, 6.0 + difference)
    path = decisions.store(decision)
    assert report.main([]) == 0
    text = (project.runs_directory() / "report.md").read_text()
    assert "Decided by `gptlab decide`: tied is better than base_1 by 0.500 nats/token" in text.replace("\\", "")
    path.write_text(path.read_text().replace("5.5", "5.6"))
    assert report.main([]) == 0
    assert capsys.readouterr().err == f"{path} is damaged: its digest does not match; this decision is skipped\n"
    assert "Decided" not in (project.runs_directory() / "report.md").read_text()


def test_the_reference_is_an_experiment_its_label_its_name_or_a_run(compared: dict[str, str]) -> None:
    runs = load.runs()
    for name in ("tied", compared["tied"], f"{compared['tied']}-s1"):
        assert reference.find_experiment(runs, name) == compared["tied"]
    assert report.main(["--against", "tied"]) == 0
    text = (project.runs_directory() / "report.md").read_text()
    assert "base\\_1 − tied = +0.5" in text
    assert "Differences are from tied. p is" in text


def test_an_ambiguous_reference_names_the_choices(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run("tiny"), make_run("tiny", changes={"train.learning_rate": 0.01})
    other = make_run("other")
    runs = load.runs()
    keys = [run.id.rpartition("-s")[0] for run in (one, two, other)]
    assert reference.find_experiment(runs, "tiny learning_rate=0.01") == keys[1]
    assert report.main(["--against", "tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --against is 'tiny', which several experiments match: ")
    assert all(f"{key} (tiny learning_rate=" in error for key in keys[:2])
    assert keys[2] not in error
    assert report.main(["--against", "tinny"]) == 2
    error = capsys.readouterr().err
    assert all(key in error for key in keys)
    assert error.endswith("did you mean 'tiny'?\n")


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_only_the_table_is_printed(compared: dict[str, str], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--table", kind, "--against", "base_1"]) == 0
    out = capsys.readouterr().out
    assert not list(project.runs_directory().glob("report.*"))
    if kind == "markdown":
        assert MarkdownIt("commonmark").enable("table").render(out).count("<tr>") == 4
        assert re.search(
            r"^\| tied \| 2 \| 5\.5\d{3} ± 0\.\d{4} \| −0\.5\d{3} ± 0\.\d{4} \| 0\.\d{3} \|$", out, re.MULTILINE
        )
        assert re.search(r"^\| base\\_1 \| 2 \| 6\.0500 ± 0\.\d{4} \| – \| – \|$", out, re.MULTILINE)
    else:
        lines = out.splitlines()
        assert lines[1:3] == [r"\begin{tabular}{lrrrr}", r"\toprule"]
        assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
        assert lines[3] == r"Experiment & Seeds & Validation loss at step 20 & Difference from base\_1 & p \\"
        assert r"base\_1 & 2 & 6.0500 \ensuremath{\pm} " in out
        assert r"\ensuremath{-}0.5" in out


def test_a_table_without_runs_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--table", "latex"]) == 2
    assert capsys.readouterr() == ("", f"error: {report.NO_RUNS[0].lower()}{report.NO_RUNS[1:]}\n")


def unescaped(latex: str) -> str:
    """What LaTeX prints for text without commands other than those that stand for characters."""
    for character, escape in tables.LATEX.items():
        if escape.startswith(("\\text", "\\ensuremath")):
            latex = latex.replace(escape, f"\x00{ord(character)};")
    latex = re.sub(r"\\([&%$#_{}])", lambda found: f"\x00{ord(found[1])};", latex)
    assert "\\" not in latex
    assert not set(latex) & set("&%$#_~^<>|")
    assert "--" not in latex
    latex = latex.replace("{", "").replace("}", "")
    return re.sub("\x00([0-9]+);", lambda found: chr(int(found[1])), latex)


@given(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"])) | st.sampled_from([r"a_b^c~d\e{f}", "--- % $x$"])
)
@settings(max_examples=settings.default.max_examples)
def test_latex_prints_any_ascii_text_as_it_is(text: str) -> None:
    assert unescaped(tables.escape_latex(text)) == " ".join(text.split())


def test_latex_has_no_characters_that_pdflatex_may_lack_and_no_options_of_a_row() -> None:
    table = tables.to_latex(DataFrame([["[x] 中\x07", "*"]], columns=["a", "b"]))
    assert table.isascii()
    assert "\n{[}x{]} {[}U+4E2D{]}{[}U+0007{]} & {*} \\\\\n" in table


def test_figures_are_written_beside_the_report(
    compared: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--figures", str(tmp_path / "new" / "figures")]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    names = {path.name for path in printed if path.parent == tmp_path / "new" / "figures"}
    stems = ("validation-loss", "differences", "differences-over-steps")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert {path.name for path in printed} == names | {"report.md", "report.html"}
    for path in printed:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
                assert image.width == round(300 * figures.WIDTH)
        if path.suffix == ".svg":
            svg = path.read_text()
            assert "<svg" in svg
            assert any(color in svg for color in palette.PRINT_COLORS[1:3])


def test_figures_have_the_same_bytes_each_time_and_hold_the_numbers(compared: dict[str, str]) -> None:
    found = findings()
    assert figures.draw(found, "differences", figures.differences) == figures.draw(
        findings(), "differences", figures.differences
    )
    with figures.mpl.rc_context(figures.THEME):
        curves = figures.validation_loss(found).axes[0].lines
        (zero, *_) = figures.differences(found).axes[0].lines[-1:]
        course = figures.differences_over_steps(found).axes[0].lines
    assert [line.get_label() for line in curves] == ["tied", "base_1", "bias"]
    assert len({line.get_linestyle() for line in curves}) == len({line.get_color() for line in curves}) == 3
    assert curves[1].get_ydata().tolist() == pytest.approx([11.0, 8.0, 6.05])
    assert list(zero.get_xdata()) == [0, 0]
    assert course[0].get_label() == "tied"
    assert course[0].get_ydata().tolist() == pytest.approx([0.0, -0.5, -0.5025])


@pytest.mark.parametrize("losses", [(), (11.0, float("inf"))])
def test_figures_are_drawn_of_few_and_of_odd_numbers(make_run: MakeRun, losses: tuple[float, ...]) -> None:
    make_run("one", val_losses=losses)
    make_run("other", changes={"model.tied": True}, val_losses=losses)
    for content in figures.draw_all(findings()).values():
        assert content.startswith((b"<?xml", b"\x89PNG"))
        if content.startswith(b"\x89PNG"):
            Image.open(BytesIO(content)).verify()


def test_the_page_is_opened_on_a_desktop_and_elsewhere_a_note_says_that_there_is_none(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: not opened.append(uri))
    monkeypatch.setattr(desktop.sys, "platform", "linux")
    for name in desktop.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    assert report.main(["--open"]) == 0
    assert (opened, capsys.readouterr().err.count("note: there is no desktop")) == ([], 1)
    monkeypatch.setenv("DISPLAY", ":0")
    assert report.main(["--open"]) == 0
    assert opened == [(project.runs_directory() / "report.html").as_uri()]
    assert capsys.readouterr().err == ""


def test_slow_work_is_named_in_one_line_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    shown = progress.Progress.show
    with progress.showing() as running:
        running.stage("reading the runs")
        running.show()
    assert "reading the runs …\n" in capsys.readouterr().err
    monkeypatch.setattr(progress, "PATIENCE_S", 60.0)
    with progress.showing() as running:
        running.stage("reading the runs")
    assert capsys.readouterr().err == ""
    assert progress.Progress.show is shown
