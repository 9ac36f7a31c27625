"""A trained run that a test may change."""

import shutil

import pytest

from gptlab import project
from gptlab.tracking.run import Run, load_run


@pytest.fixture
def copied(long_run: Run) -> Run:
    """A copy of the undisturbed run of forty steps."""
    directory = project.runs_directory() / long_run.id
    shutil.copytree(long_run.directory, directory)
    return load_run(directory)
