"""Where the project, its runs and its cache are found."""

import pwd
import sys
from pathlib import Path

import pytest

from gptlab import project
from gptlab.errors import BadInputError

HERE = Path(__file__).resolve().parents[1]


def make_project(folder: Path) -> Path:
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


@pytest.mark.parametrize("below", [".", "analysis", "experiments", "deep/down/there"])
def test_root_is_found_from_any_folder_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str):
    root = make_project(tmp_path / "project")
    (root / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(root / below)
    assert project.root() == root


def test_nearest_of_two_nested_projects_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inner = make_project(make_project(tmp_path / "outer") / "inner")
    monkeypatch.chdir(inner)
    assert project.root() == inner


@pytest.mark.parametrize("has", ["experiments", "pyproject.toml", "neither"])
def test_folder_without_both_markers_is_not_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: str):
    (tmp_path / has).mkdir()  # a folder named pyproject.toml is not a marker either
    monkeypatch.chdir(tmp_path)
    assert project.root() == HERE, "outside of any project it is the one that the package lies in"


def test_runs_are_in_the_project_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path / "project"))
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "elsewhere"))
    assert project.runs_directory() == tmp_path / "elsewhere"
    for unset in (lambda: monkeypatch.setenv("GPTLAB_RUNS", ""), lambda: monkeypatch.delenv("GPTLAB_RUNS")):
        unset()
        assert project.runs_directory() == tmp_path / "project" / "runs"


@pytest.mark.parametrize(
    ("variable", "directory"), [("GPTLAB_RUNS", project.runs_directory), ("GPTLAB_CACHE", project.cache_directory)]
)
def test_moved_directory_may_be_relative_or_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, directory: object
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "~/there")
    assert directory() == tmp_path / "home" / "there"  # type: ignore[operator]
    monkeypatch.setenv(variable, "there")
    assert directory() == tmp_path / "there"  # type: ignore[operator]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is Linux's convention")
def test_cache_is_in_the_users_cache_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GPTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert project.cache_directory() == tmp_path / "xdg" / "gptlab"


def test_path_below_the_working_directory_is_displayed_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert project.display_path(tmp_path / "here" / "experiments" / "a.py") == "experiments/a.py"
    assert project.display_path(tmp_path / "there" / "a.py") == str(tmp_path / "there" / "a.py")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with an arbitrary user id."""
    for name in ("HOME", "XDG_CACHE_HOME", "GPTLAB_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(BadInputError, match="set HOME or GPTLAB_CACHE"):
        project.cache_directory()
