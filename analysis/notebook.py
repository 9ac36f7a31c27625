"""What the notebooks begin with: your runs, and figures that are still there in a saved notebook."""

import warnings
from importlib import import_module
from types import ModuleType

import plotly.io
from pandas import DataFrame

from analysis import load
from gptlab.errors import BadInputError

RENDERER = "plotly_mimetype+notebook"
"""JupyterLab draws the first form. `jupyter nbconvert` keeps only the second, which holds plotly.js: no network."""

MIN_VALUES = 3
"""A minimum between the smallest and the largest value needs three."""


def start() -> DataFrame:
    """Prepare figures for a notebook and return all runs.

    Raises:
        BadInputError: There are no runs.
    """
    plotly.io.renderers.default = RENDERER
    runs = load.runs()
    need(runs, "runs; make one with: make exp NAME=tiny")
    return runs


def need(table: DataFrame, what: str) -> None:
    """Check that a notebook has what it is about.

    Args:
        table: Empty if there is none.
        what: What is missing, and how to make it.

    Raises:
        BadInputError: There is none.
    """
    if table.empty:
        raise BadInputError(f"there are no {what}")


def optional(package: str) -> ModuleType:
    """Import a package that no other notebook needs, without its warnings, which name local paths.

    Raises:
        BadInputError: It is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(package)
    except ModuleNotFoundError as error:
        raise BadInputError(f"this notebook needs {package}: pip install {package}") from error


def sweep(runs: DataFrame, setting: str) -> DataFrame:
    """The runs of the experiment with the most values of a setting.

    Args:
        runs: Rows of `load.runs()`.
        setting: A column, such as `train.learning_rate`.

    Raises:
        BadInputError: No experiment has three values of it.
    """
    values = runs.groupby("name")[setting].nunique()
    if values.max() < MIN_VALUES:
        raise BadInputError(
            f"there is no experiment with {MIN_VALUES} values of {setting}; make runs with: "
            f'make exp NAME=tiny SET="{setting}=..."'
        )
    return runs[runs["name"] == values.idxmax()].reset_index(drop=True)
