"""`python -m analysis.notebooks`: execute the notebooks on your runs and save them with their outputs.

Each figure is saved twice: as plotly data for JupyterLab, and as a PNG for code hosts.
"""

if __name__ == "__main__":  # before the other imports, which take a second
    from gptlab.entry import start

    start("analysis.notebooks")

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import plotly.offline
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from selenium.webdriver.chrome.webdriver import WebDriver

from analysis.browser import headless
from gptlab import project
from gptlab.errors import GptlabError
from gptlab.failures import exit_code
from gptlab.files import atomic_write

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


def main() -> int:
    """Execute and save all notebooks of the project; return the exit code."""
    return exit_code(_execute_all)


def _execute_all() -> None:
    with headless() as browser:
        browser.get("about:blank")
        browser.execute_script(plotly.offline.get_plotlyjs())
        for path in sorted((project.root() / "analysis").glob("*.ipynb")):
            execute(path, browser)
            sys.stdout.write(f"{project.display_path(path)}\n")


def execute(path: Path, browser: WebDriver) -> None:
    """Execute a notebook from top to bottom in its own folder, and save it with PNGs of its figures."""
    notebook: Any = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise GptlabError(f"{project.display_path(path)} cannot be executed: {reason}") from error
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # execution times are noise in a diff
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                data.pop("text/html", None)
                data["image/png"] = render_png(data[PLOTLY], browser)
    with atomic_write(path) as file:
        file.write(nbformat.writes(notebook).encode() + b"\n")


def render_png(figure: Any, browser: WebDriver) -> str:
    """Render a plotly figure as a PNG, encoded in base64."""
    plain = json.loads(json.dumps({"data": figure["data"], "layout": figure["layout"]}))
    return str(browser.execute_async_script(RENDER, plain)).partition(",")[2]
