from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from numpy.typing import NDArray

from gptlab.tracking.run import Run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "analysis" / "compare_runs.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"

MakeRun = Callable[..., Run]


def test_the_notebook_is_valid_and_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count]


def test_the_notebook_compares_two_runs_from_its_own_folder(
    make_run: MakeRun,
    weights: Mapping[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    one = make_run("one", samples=["words of one"], checkpoints={20: weights})
    two = make_run("two", changes={"model.tied": True}, val_losses=(11.0, 5.0), checkpoints={10: weights})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    comparison = outputs["differ"][-1]["data"]["text/html"]
    assert comparison.index(two.id) < comparison.index(one.id)
    assert "model.tied" in comparison
    for cell in ("train-curves", "val-curves"):
        traces = outputs[cell][0]["data"][PLOTLY]["data"]
        assert [trace["name"] for trace in traces] == [two.id, one.id]
        assert all(len(trace["x"]) == len(trace["y"]) > 0 for trace in traces)
    (matrix,) = outputs["weights"][0]["data"][PLOTLY]["data"]
    assert matrix["y"] == [1.0, 2.0]
    assert "The words of one" in outputs["samples"][0]["text"]
