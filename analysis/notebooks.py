"""`python -m analysis.notebooks`: execute copies of the notebooks on your runs, in `runs/notebooks/`.

A notebook that your runs are not enough for is copied with the outputs of the published runs. `--publish` executes the
notebooks of the project themselves instead: each figure is then saved as plotly data for JupyterLab and as a PNG for
code hosts.
"""

if __name__ == "__main__":  # before the other imports, which take a second
    import os

    from gptlab.entry import start

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in `gptlab.interface.results.report`
    start("analysis.notebooks")

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import plotly.offline
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from selenium.webdriver.chrome.webdriver import WebDriver

from analysis.browser import headless
from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.failures import exit_code, print_line
from gptlab.files import atomic_write
from gptlab.terminal.text import one_line

FOLDER = "notebooks"
"""Folder of the copies in the runs directory."""
PLOTLY = "application/vnd.plotly.v1+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
RENDER = """
const [figure, done] = arguments;
figure.layout = {...figure.layout, paper_bgcolor: "white"};
Plotly.toImage(figure, {format: "png", width: 900, height: figure.layout.height || 420}).then(done);
"""


class NotEnoughRunsError(GptlabError):
    """A notebook needs runs that are not there; the message says which."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebooks and return the exit code.

    Args:
        arguments: The command-line arguments; `sys.argv[1:]` by default.
    """
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.notebooks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--publish", action="store_true", help="execute the project's own notebooks, with PNGs")
    publish = parser.parse_args(arguments).publish
    originals = sorted((project.root() / "analysis").glob("*.ipynb"))
    if publish:
        publish_all(originals)
        return
    for original in originals:
        copy = project.runs_directory() / FOLDER / original.name
        if _is_edited(copy):
            print_line(f"note: {project.display_path(copy)} was edited and stays as it is; rename it to get a new copy")
            continue
        write_copy(original, copy)
        sys.stdout.write(f"{one_line(project.display_path(copy))}\n")


def write_copy(original: Path, copy: Path) -> None:
    """Write a notebook executed on the user's runs, or as it was published if they are not enough for it.

    Raises:
        GptlabError: It cannot be executed for another reason.
    """
    try:
        notebook = execute(original)
    except NotEnoughRunsError as error:
        print_line(f"note: {original.name} shows the published runs, not yours: {error}")
        notebook = nbformat.read(original, as_version=4)
    notebook.metadata = nbformat.from_dict({**METADATA, "gptlab": {"sources": _sources(notebook)}})
    _write(copy, notebook)


def execute(path: Path) -> Any:
    """Return a notebook, executed from top to bottom in its own folder.

    Raises:
        NotEnoughRunsError: It needs runs that are not there.
        GptlabError: It cannot be executed for another reason.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
    except CellExecutionError as error:
        if error.ename == BadInputError.__name__:
            raise NotEnoughRunsError(error.evalue) from error
        raise _failure(path, error) from error
    except (CellControlSignal, DeadKernelError) as error:
        raise _failure(path, error) from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # execution times are noise in a diff
    return notebook


def publish_all(paths: Sequence[Path]) -> None:
    """Execute notebooks and save them in place, with PNGs of their figures instead of scripts that draw them."""
    with headless() as browser:
        browser.get("about:blank")
        browser.execute_script(plotly.offline.get_plotlyjs())
        for path in paths:
            notebook = execute(path)
            notebook.metadata = nbformat.from_dict(METADATA)
            for cell in notebook.cells:
                if "outputs" in cell:
                    cell.outputs = [output for output in cell.outputs if not _is_plotly_script(output)]
                for output in cell.get("outputs", []):
                    _use_png(output.get("data", {}), browser)
            _write(path, notebook)
            sys.stdout.write(f"{one_line(project.display_path(path))}\n")


def render_png(figure: Any, browser: WebDriver) -> str:
    """Render a plotly figure as a PNG, encoded in base64."""
    plain = json.loads(json.dumps({"data": figure["data"], "layout": figure["layout"]}))
    return str(browser.execute_async_script(RENDER, plain)).partition(",")[2]


def _use_png(data: Any, browser: WebDriver) -> None:
    if PLOTLY in data:
        data.pop("text/html", None)
        data["image/png"] = render_png(data[PLOTLY], browser)


def _is_plotly_script(output: Any) -> bool:
    """Whether an output is plotly.js, which the first figure of a notebook brings."""
    return "window.PlotlyConfig" in output.get("data", {}).get("text/html", "") and PLOTLY not in output["data"]


def _failure(path: Path, error: Exception) -> GptlabError:
    reason = str(error).strip().splitlines()[-1]
    return GptlabError(f"{project.display_path(path)} cannot be executed: {reason}")


def _is_edited(copy: Path) -> bool:
    """Whether a copy has other cells than when it was written."""
    try:
        notebook: Any = nbformat.read(copy, as_version=4)
    except FileNotFoundError:
        return False
    except Exception:  # whatever it is, it is not what was written
        return True
    return bool(notebook.metadata.get("gptlab", {}).get("sources") != _sources(notebook))


def _sources(notebook: Any) -> str:
    """The SHA-256 of a notebook's cells without outputs."""
    cells = [[cell.cell_type, cell.source] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _write(path: Path, notebook: Any) -> None:
    with atomic_write(path, make_parents=True) as file:
        file.write(nbformat.writes(notebook).encode() + b"\n")
