"""`python -m analysis.notebooks`: execute the notebooks on your runs and save them with their outputs.

Each figure is saved twice: as plotly data for JupyterLab, and as a PNG for code hosts.
"""

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import plotly.offline
from nbclient import NotebookClient
from selenium.webdriver.chrome.webdriver import WebDriver

from analysis.browser import headless
from gptlab import project

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
    with headless() as browser:
        browser.get("about:blank")
        browser.execute_script(plotly.offline.get_plotlyjs())
        for path in sorted((project.root() / "analysis").glob("*.ipynb")):
            execute(path, browser)
            sys.stdout.write(f"{project.display_path(path)}\n")
    return 0


def execute(path: Path, browser: WebDriver) -> None:
    """Execute a notebook from top to bottom in its own folder, and save it with PNGs of its figures."""
    notebook: Any = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # execution times are noise in a diff
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                data.pop("text/html", None)
                data["image/png"] = render_png(data[PLOTLY], browser)
    nbformat.write(notebook, path)


def render_png(figure: Any, browser: WebDriver) -> str:
    """Render a plotly figure as a PNG, encoded in base64."""
    plain = json.loads(json.dumps({"data": figure["data"], "layout": figure["layout"]}))
    return str(browser.execute_async_script(RENDER, plain)).partition(",")[2]


if __name__ == "__main__":
    sys.exit(main())
