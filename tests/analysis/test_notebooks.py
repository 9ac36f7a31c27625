"""The notebooks run from top to bottom on new runs, and are committed with their outputs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support import run_attempt

from gptlab.spec import Experiment
from gptlab.tracking.run import all_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("compare_runs", "inside_a_checkpoint", "learning_rate")
PLOTLY = "application/vnd.plotly.v1+json"

Outputs = dict[str, list[Any]]


@pytest.fixture(scope="module")
def trained(micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with three learning rates of two seeds each, two of the runs evaluated on all windows."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        from gptlab.commands.evaluate import evaluate_run
        from gptlab.terminal.console import Console

        for learning_rate in (1e-3, 3e-2, 1.0):
            changes = {"name": "tiny", "train.learning_rate": learning_rate, "train.snapshots": True}
            for seed in (0, 1):
                result = run_attempt(micro.with_changes(changes), seed, steps=20)
            evaluate_run(result.run, step=None, text=None, device="cpu", console=Console(stderr=True))
    return runs


@pytest.fixture
def execute(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Outputs]:
    """`execute(name)` runs a notebook in its own folder and returns the outputs of its code cells by id."""

    def run(name: str) -> Outputs:
        monkeypatch.setenv("GPTLAB_RUNS", str(trained))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
        path = ROOT / "analysis" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
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


def test_learning_rate_finds_an_optimum_within_the_range_of_values(execute: Callable[[str], Outputs]) -> None:
    outputs = execute("learning_rate")
    assert "['train.learning_rate']" in outputs["imports"][-1]["data"]["text/plain"]
    optimum = float(text(outputs["optimum"]).split()[2].rstrip(","))
    assert 1e-3 < optimum < 1
    assert "from 2 seeds" in text(outputs["optimum"])
    mean, runs = traces(outputs["curve"])
    assert (len(mean["x"]), len(runs["x"])) == (3, 6)
    assert len(traces(outputs["training"])) == 6


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
