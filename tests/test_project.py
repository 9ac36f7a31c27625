"""Where the project, its runs and its cache are found."""

import pwd
import sys
from pathlib import Path

import pytest

from gptlab import project
from gptlab.errors import BadInputError

HERE = Path(__file__).resolve().parents[1]


def make_project(folder: Path, marker: str = "[tool.gptlab]\n") -> Path:
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(marker)
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gptlab is installed, but not from a checkout."""
    monkeypatch.setattr(project, "__file__", str(tmp_path / "site-packages" / "gptlab" / "project.py"))


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


@pytest.mark.parametrize(
    "marker",
    [
        '[project]\nname = "gptlab"\n',
        '[project]\nname = "mine"\ndependencies = ["torch", "GPTLab[analysis] >= 0.1"]\n',
        '[project.optional-dependencies]\nlab = ["gptlab @ git+https://example.org/gptlab"]\n',
        '[dependency-groups]\ndev = ["gptlab", {include-group = "other"}]\n',
        '[tool.poetry.dependencies]\npython = "^3.11"\ngptlab = "*"\n',
        "[tool.gptlab]\n",
    ],
)
def test_a_project_names_gptlab_in_its_pyproject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str):
    root = make_project(tmp_path / "project", marker)
    monkeypatch.chdir(root)
    assert project.root() == root


def test_a_fork_with_another_name_is_a_project_because_its_experiments_import_gptlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = make_project(tmp_path / "fork", '[project]\nname = "ourlab"\n')
    (root / "experiments" / "a.py").write_text('"""One."""\n\nfrom gptlab.spec import Experiment\n')
    monkeypatch.chdir(root)
    assert project.root() == root


@pytest.mark.parametrize(
    "marker",
    [
        "",
        '[project]\nname = "robots"\n',
        '[project]\ndependencies = ["gptlab-tools", "not-gptlab"]\n',
        '[project]\ndescription = "Better than gptlab"\n',
        'project = "gptlab"\ntool = ["gptlab"]\n',
    ],
)
def test_another_repository_with_experiments_is_not_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
):
    root = make_project(tmp_path / "robots", marker)
    (root / "experiments" / "walk.py").write_text("# like gptlab\nopen('executed', 'w')\n")
    (root / "experiments" / "dangling.py").symlink_to("nowhere")
    monkeypatch.chdir(root)
    assert project.root() == HERE


@pytest.mark.parametrize("marker", ["[tool.gptlab\n", "[tool.gptlab]\nname = '\xff'\n"])
def test_a_project_with_a_broken_pyproject_is_an_error_and_no_other_project_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
):
    root = make_project(tmp_path / "project")
    (root / "pyproject.toml").write_bytes(marker.encode("latin-1"))
    monkeypatch.chdir(root)
    with pytest.raises(BadInputError, match=r"^pyproject\.toml is not valid TOML: "):
        project.root()


@pytest.mark.usefixtures("wheel")
def test_a_wheel_outside_of_any_project_has_no_root_and_the_error_says_what_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert project.find_root() is None
    with pytest.raises(BadInputError, match=r"no folder at or above .* is a gptlab project: one has experiments/ and"):
        project.root()
    assert project.runs_directory() == tmp_path / "runs", "GPTLAB_RUNS needs no project"


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
