"""The notebooks run from top to bottom on new runs, and are committed with their outputs."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nbconvert
import nbformat
import numpy as np
import pytest
from pandas import DataFrame
from selenium.webdriver.support.wait import WebDriverWait
from support import PATIENCE_S, run_attempt

from analysis import notebook, notebooks
from analysis.browser import BROWSER, DRIVER, headless
from gptlab import project
from gptlab.errors import BadInputError
from gptlab.spec import Experiment
from gptlab.tracking.run import all_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("compare_runs", "explain", "export", "inside_a_checkpoint", "learning_rate")
PLOTLY = "application/vnd.plotly.v1+json"

Outputs = dict[str, list[Any]]


@pytest.fixture(scope="module")
def trained(gpt2_micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with three learning rates of two seeds each, three of the runs explained."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        from gptlab.commands.evaluate import find_windows
        from gptlab.commands.explain import explain
        from gptlab.terminal.console import Console

        for learning_rate in (1e-3, 3e-2, 1.0):
            changes = {"name": "tiny", "train.learning_rate": learning_rate, "train.snapshots": True}
            for seed in (0, 1):
                result = run_attempt(gpt2_micro.with_changes(changes), seed, steps=20)
            console = Console(stderr=True)
            explain(find_windows(result.run, step=None, text=None, device="cpu", console=console), 20, console)
    return runs


@pytest.fixture(scope="module")
def copies(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the copies of the notebooks, executed on these runs."""
    folder = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(trained))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        before = [(ROOT / "analysis" / f"{name}.ipynb").read_bytes() for name in NAMES]
        assert notebooks.main([]) == 0
        assert before == [(ROOT / "analysis" / f"{name}.ipynb").read_bytes() for name in NAMES], "tracked files"
    return trained / "notebooks"


@pytest.fixture
def execute(copies: Path) -> Callable[[str], Outputs]:
    """`execute(name)` returns the outputs of an executed notebook's code cells by id."""

    def run(name: str) -> Outputs:
        notebook = nbformat.read(copies / f"{name}.ipynb", as_version=4)
        return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    return run


def traces(outputs: list[Any]) -> list[Any]:
    """The traces of a cell's figure. None may be empty."""
    found = outputs[-1]["data"][PLOTLY]["data"]
    assert found
    assert all(trace.get("x") or trace.get("z") for trace in found)
    return found


def text(outputs: list[Any]) -> str:
    """The text and HTML output of a cell."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/html", "") for output in outputs)


def ids(monkeypatch: pytest.MonkeyPatch, trained: Path) -> list[str]:
    monkeypatch.setenv("GPTLAB_RUNS", str(trained))
    return [run.id for run in all_runs()]


def test_compare_runs_shows_all_runs_their_curves_and_a_paired_test(
    execute: Callable[[str], Outputs], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = execute("compare_runs")
    runs = ids(monkeypatch, trained)
    assert len(runs) == 6
    for cell in ("imports", "differ", "samples"):
        assert all(run in text(outputs[cell]) for run in runs), cell
    assert "train.learning_rate" in text(outputs["differ"])
    for cell in ("train-curves", "val-curves"):
        assert {trace["name"] for trace in traces(outputs[cell])} == set(runs)
    assert len(traces(outputs["estimates"])) == 3
    assert text(outputs["paired"]).count("paired by seed") == 2
    assert "Difference(mean=" in text(outputs["windows"])
    assert "n=" in text(outputs["windows"])


def test_inside_a_checkpoint_shows_weights_over_training(execute: Callable[[str], Outputs]) -> None:
    outputs = execute("inside_a_checkpoint")
    assert "tiny-" in text(outputs["imports"])
    for cell in ("norms", "rank"):
        (heat,) = traces(outputs[cell])
        assert heat["x"] == ["0", "1", "2", "4", "8", "10", "16", "20"]
        assert len(heat["y"]) == len(heat["z"]) == 11
    for cell in ("updates", "cosine"):
        assert len(traces(outputs[cell])) == 7
    first, last = traces(outputs["spectra"])
    assert (first["name"], last["name"]) == ("step 0", "step 20")
    assert len(first["x"]) == 8
    assert text(outputs["neighbors"]).count("→") == 4


def test_explain_shows_context_frequency_differences_and_memorization(execute: Callable[[str], Outputs]) -> None:
    outputs = execute("explain")
    assert text(outputs["worth"]).count("tiny-") == 3
    assert [len(trace["x"]) for trace in traces(outputs["context"])] == [5, 5, 5]
    assert len(traces(outputs["frequency"])) == 3
    assert text(outputs["differences"]).count("<td>position</td>") == 5
    assert text(outputs["memorization"]).count("<td>held out</td>") == 3


def test_export_loads_in_transformers_with_equal_logits_and_text(execute: Callable[[str], Outputs]) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'gptlab[dev]'")
    outputs = execute("export")
    assert "model.safetensors" in text(outputs["export"])
    assert float(text(outputs["logits"]).split()[2].rstrip(",")) < 1e-10
    encoded = [trace["y"] for trace in traces(outputs["head"])]
    card, loaded, skipping = (np.frombuffer(base64.b64decode(y["bdata"]), y["dtype"]) for y in encoded)
    assert np.abs(card - loaded).max() < 1e-4 < 1e-2 < np.abs(card - skipping).max()
    theirs, ours = text(outputs["text"]).splitlines()
    assert theirs == ours


def test_learning_rate_finds_an_optimum_within_the_range_of_values(execute: Callable[[str], Outputs]) -> None:
    outputs = execute("learning_rate")
    assert "['train.learning_rate']" in outputs["imports"][-1]["data"]["text/plain"]
    optimum = float(text(outputs["optimum"]).split()[2].rstrip(","))
    assert 1e-3 < optimum < 1
    assert "from 2 seeds" in text(outputs["optimum"])
    mean, runs = traces(outputs["curve"])
    assert (len(mean["x"]), len(runs["x"])) == (3, 6)
    assert len(traces(outputs["training"])) == 6


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")
def test_figures_of_a_copy_are_in_its_html_without_a_network(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Path(nbconvert.__file__).parents[4]  # its templates are there, also in an environment on top of it
    monkeypatch.setenv("JUPYTER_PATH", str(installed / "share" / "jupyter"))
    page = tmp_path / "compare_runs.html"
    page.write_text(nbconvert.HTMLExporter().from_filename(str(copies / "compare_runs.ipynb"))[0])
    with headless() as browser:
        browser.get(page.as_uri())
        drawn = "return document.querySelectorAll('.plotly-graph-div .scatterlayer .trace').length"
        WebDriverWait(browser, PATIENCE_S).until(lambda driver: driver.execute_script(drawn) == 6 + 6 + 3)


def small(folder: Path, source: str) -> Path:
    """A project's notebook with one cell and an output of the published runs."""
    cell = nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("stream", text="published")])
    path = folder / "analysis" / "small.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def printed(path: Path) -> str:
    return text(nbformat.read(path, as_version=4).cells[0].outputs)


def test_a_notebook_that_the_runs_are_not_enough_for_shows_the_published_ones_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = small(tmp_path, "from analysis import notebook\nnotebook.start()")
    monkeypatch.setattr(project, "root", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert notebooks.main([]) == 0
    copy = project.runs_directory() / "notebooks" / "small.ipynb"
    out, err = capsys.readouterr()
    assert (out, printed(copy)) == (f"{copy}\n", "published")
    assert "note: small.ipynb shows the published runs, not yours: there are no runs; make one with: make exp" in err
    assert "gptlab" not in nbformat.read(original, as_version=4).metadata


def test_an_edited_copy_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(tmp_path, "1")
    monkeypatch.setattr(project, "root", lambda: tmp_path)
    outputs = iter(["first", "second"])

    def execute(path: Path) -> Any:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].outputs[0].text = next(outputs)
        return notebook

    monkeypatch.setattr(notebooks, "execute", execute)
    copy = project.runs_directory() / "notebooks" / "small.ipynb"
    for expected in ("first", "second"):
        assert notebooks.main([]) == 0
        assert printed(copy) == expected
    edited = copy.read_text().replace('"1"', '"2"')
    copy.write_text(edited)
    capsys.readouterr()
    assert notebooks.main([]) == 0
    assert copy.read_text() == edited
    assert capsys.readouterr().err.endswith("was edited and stays as it is; rename it to get a new copy\n")


def test_published_notebooks_have_images_instead_of_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = small(tmp_path, "1")
    figure = {notebooks.PLOTLY: {"data": [], "layout": {}}, "text/html": "<script></script>"}
    script = {"text/html": "<script>window.PlotlyConfig = {}</script>"}

    def execute(path: Path) -> Any:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", data) for data in (script, figure)]
        return notebook

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "render_png", lambda figure, browser: "cG5n")
    monkeypatch.setattr(notebooks, "headless", MagicMock)
    notebooks.publish_all([original])
    (output,) = nbformat.read(original, as_version=4).cells[0].outputs
    assert output.data == {notebooks.PLOTLY: {"data": [], "layout": {}}, "image/png": "cG5n"}


def test_the_sweep_is_the_experiment_with_the_most_values() -> None:
    runs = DataFrame({"name": ["a", "a", "b", "b", "b"], "lr": [1.0, 2.0, 1.0, 2.0, 3.0]})
    assert notebook.sweep(runs, "lr")["name"].tolist() == ["b"] * 3
    with pytest.raises(BadInputError, match="there is no experiment with 3 values of lr; make runs with: make exp"):
        notebook.sweep(runs[runs["name"] == "a"], "lr")


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_has_outputs_and_no_local_paths(name: str) -> None:
    path = ROOT / "analysis" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed from top to bottom"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    figures = [output.data for cell in code for output in cell.outputs if PLOTLY in output.get("data", {})]
    assert figures
    assert all("image/png" in data for data in figures), "code hosts display images only"
    written = path.read_text(encoding="utf-8")
    assert not [place for place in ("/tmp/", "/home/", "/root/", "/Users/", os.fspath(ROOT)) if place in written]
    assert path.stat().st_size < 1_000_000
